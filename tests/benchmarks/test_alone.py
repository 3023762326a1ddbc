"""Work in another process: results as they come, failures, and an end in time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from benchmarks.alone import FailedAlone, alone


def pids(count: int) -> Iterator[int]:
    for _ in range(count):
        yield os.getpid()


def one_then_fails() -> Iterator[int]:
    yield 1
    os._exit(3)


def one_then_waits() -> Iterator[int]:
    yield os.getpid()
    time.sleep(600)


def test_results_come_from_one_other_process() -> None:
    found = list(alone(pids, 3))
    assert len(found) == 3
    assert {os.getpid()}.isdisjoint(found) and len(set(found)) == 1


def test_what_came_before_a_failure_is_there() -> None:
    results = alone(one_then_fails)
    assert next(results) == 1
    with pytest.raises(FailedAlone, match="one_then_fails: exit code 3"):
        next(results)


def test_work_that_does_not_end_in_time_is_ended() -> None:
    results = alone(one_then_waits, deadline=time.monotonic() + 15)
    pid = next(results)
    with pytest.raises(FailedAlone, match="the time is up"):
        next(results)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
