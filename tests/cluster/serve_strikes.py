"""What can be done to the processes of a service."""

from __future__ import annotations

import gc
import os
import signal
from typing import Any

import psutil
import ray
from ray.serve._private.constants import SERVE_NAMESPACE

from actors.messages import Order
from actors.rank_group import RankGroup
from cluster.replica import Replica
from tests.cluster.serve_case import actors, processes


def our_processes(title: str) -> list[psutil.Process]:
    """Of the Ray that this process has started; Ray names what runs in a process."""
    return [one for one in psutil.Process().children(recursive=True) if title in _title(one)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()[:2])
    except psutil.Error:
        return ""


def rank_processes() -> list[psutil.Process]:
    """Those that are actors: one, as the other rank of two is in the replica."""
    return our_processes("RankHost")


def killed_rank() -> None:
    for one in rank_processes():
        one.kill()


def stopped_rank() -> None:
    for one in rank_processes():
        one.suspend()


def raising_rank() -> None:
    """It gets what is no order."""
    for name in actors("struck"):
        replica: Any = ray.get_actor(name, namespace=SERVE_NAMESPACE)
        ray.get(replica.__ray_call__.remote(_corrupt_an_order), timeout=60)


def _corrupt_an_order(_actor: object) -> None:
    """In the replica's process, before the next one that its thread sends."""
    gc.unfreeze()  # Serve has it look at less
    (replica,) = (one for one in gc.get_objects() if type(one) is Replica)
    group: Any = replica.engine._source._source._ranks  # type: ignore[attr-defined]
    assert isinstance(group, RankGroup)

    def submit(order: Order) -> None:
        del group.submit
        group._head.send(1, b"\xc1 is no order")
        group.submit(order)

    group.submit = submit


def killed_replica(model: str) -> None:
    for pid in processes(model):
        os.kill(pid, signal.SIGKILL)
