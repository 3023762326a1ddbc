"""Jobs that go wrong, in a module that workers can import."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import ray

from builders.errors import SourceError


def double(job: int, advance: Callable[[int], None]) -> int:
    advance(job)
    return 2 * job


def fall(job: int, advance: Callable[[int], None]) -> None:
    """Every job is less than the one before it."""
    advance(1000 - job)
    time.sleep(0.03)


def first_time(mark: Path) -> bool:
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def node() -> str:
    return str(ray.get_runtime_context().get_node_id())


def end_once(job: tuple[Path, int], advance: Callable[[int], None]) -> str:
    """The first attempt at a job ends its own process by a signal, when half is done."""
    mark, number = job
    advance(5)
    if first_time(mark):
        (mark.parent / "node").write_text(node())
        time.sleep(0.5)  # what is done is heard of
        os.kill(os.getpid(), number)
        time.sleep(600)
    advance(5)
    return node()


def die_or_double(job: int, _advance: Callable[[int], None]) -> int:
    if job == 1:
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * job


def divide(job: int, _advance: Callable[[int], None]) -> float:
    return 1 / job


def refuse(job: str, _advance: Callable[[int], None]) -> None:
    raise SourceError(f"{job}: not a checkpoint")


def sleep(_job: int, _advance: Callable[[int], None]) -> None:
    time.sleep(600)
