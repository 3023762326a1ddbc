"""Clusters of a test's own: several nodes, all of them on this machine."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ray.cluster_utils import Cluster

NODE = {"num_cpus": 2, "object_store_memory": 80 << 20}


@contextmanager
def idle_head(num_nodes: int) -> Iterator[Cluster]:
    """A head that works on nothing, and nodes that do."""
    head = NODE | {"num_cpus": 0, "include_dashboard": False, "dashboard_port": None}
    with sockets_left_behind():
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(num_nodes):
            cluster.add_node(**NODE)
    yield cluster
    with sockets_left_behind():
        cluster.shutdown()


@contextmanager
def sockets_left_behind() -> Iterator[None]:
    """Ray leaves some to the collector, which would tell of them in the midst of another test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()
