"""What every test shares: one thread per process, quiet libraries, small checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)

ON_RAY = "/on_ray/"
"""Folders of tests that share one Ray, which takes seconds to start: one process runs a folder's tests."""

HEAD = {
    "include_dashboard": False,
    "dashboard_port": None,  # any: several clusters of tests are on one machine
    "_system_config": {"worker_niceness": 0, "health_check_period_ms": 1000},
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """See `tests/cuda_engines.py`."""
    parser.addoption("--engines", type=Path, help="a folder of engines for tests on GPUs, built before")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """As xdist would, but for those; its own groups are not seen by every pytest that this runs with."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class TogetherOnRay(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folder, on_ray, _ = nodeid.partition(ON_RAY)
            return folder + on_ray if on_ray else nodeid

    return TogetherOnRay(config, log)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[Any]:
    """A `Cluster` of two nodes, both on this machine: few logical CPUs, small object stores, no dashboard.

    Its workers are as nice to others as any process: Ray's default starves them where a machine is busy. That
    a node is dead is noticed after five checks that it refuses.
    """
    import ray
    from ray.cluster_utils import Cluster

    from tests.actors.on_ray.clusters import sockets_left_behind

    node = {"num_cpus": 8, "object_store_memory": 80 << 20}
    with sockets_left_behind():
        cluster = Cluster(initialize_head=True, head_node_args=node | HEAD)
        cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield cluster
    with sockets_left_behind():
        ray.shutdown()
        cluster.shutdown()
