"""One real Ray for all tests of a run that need it: they are of one xdist group, so in one process.

Without `--dist loadgroup`, every worker of xdist that gets such a test starts a Ray of its own: that is
slower, not wrong.
"""

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
