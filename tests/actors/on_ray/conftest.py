"""One real Ray for all tests of this folder: `tests/conftest.py` keeps them in one process of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Nothing but this machine: few logical CPUs, a small object store, no dashboard."""
    import ray

    ray.init(
        address="local",
        num_cpus=8,
        object_store_memory=80 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()
