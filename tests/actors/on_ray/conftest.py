"""One real Ray for all tests of this folder: `tests/conftest.py` keeps them in one process of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Two nodes, both on this machine: few logical CPUs, small object stores, no dashboard."""
    import ray
    from ray.cluster_utils import Cluster

    from tests.actors.on_ray.clusters import sockets_left_behind

    node = {"num_cpus": 8, "object_store_memory": 80 << 20}
    with sockets_left_behind():
        cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
        cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield
    with sockets_left_behind():
        ray.shutdown()
        cluster.shutdown()
