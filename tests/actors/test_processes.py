"""Processes: results in order, the first error ends all, a death is named, nobody outlives the parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors.executor import Unheard
from actors.processes import Processes
from builders.errors import SourceError, WorkerError

ROOT = Path(__file__).parent.parent.parent


def names(count: int, kind: str = "job") -> list[str]:
    return [f"{kind} {number}" for number in range(count)]


def double(job: int, advance: Callable[[int], None]) -> int:
    advance(job)
    return 2 * job


class Listener(Unheard):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []

    def began(self, job: int, where: str) -> None:
        self.heard.append((job, "began", where))

    def advanced(self, job: int, amount: int) -> None:
        self.heard.append((job, "advanced", amount))

    def done(self, job: int) -> None:
        self.heard.append((job, "done"))


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    """Of those that a test starts; others may have left some."""
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_the_jobs(workers: int) -> None:
    listener = Listener()
    results = Processes(workers=workers).run(double, range(5), names(5), listener)
    assert results == [0, 2, 4, 6, 8]
    for job in range(5):
        heard = [news[1:] for news in listener.heard if news[0] == job]
        assert heard == [("began", "this machine"), ("advanced", job), ("done",)]


def fail_or_last(job: int, _advance: Callable[[int], None]) -> None:
    """Job 0 fails; any other would take longer than a test may."""
    if job == 0:
        raise SourceError("bad.bin: not a checkpoint")
    time.sleep(600)


def test_first_error_ends_the_others() -> None:
    with pytest.raises(SourceError, match=r"^bad.bin: not a checkpoint$"):
        Processes(workers=3).run(fail_or_last, range(3), names(3), Unheard())


def divide(job: int, _advance: Callable[[int], None]) -> float:
    return 1 / job


def test_a_bug_shows_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkerError, match=r"job 1: its worker died \(exit code 1\)"):
        Processes(workers=2).run(divide, [1, 0], names(2), Unheard())
    assert "ZeroDivisionError" in capfd.readouterr().err


def die(job: int, _advance: Callable[[int], None]) -> None:
    if job == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def test_killed_worker_is_named() -> None:
    with pytest.raises(WorkerError, match=r"rank 1: its worker died \(SIGKILL\)"):
        Processes(workers=2).run(die, range(2), names(2, "rank"), Unheard())


def test_error_of_the_listener_ends_the_workers() -> None:
    class Tired(Unheard):
        def advanced(self, job: int, amount: int) -> None:
            raise RuntimeError("no more news")

    with pytest.raises(RuntimeError, match="no more news"):
        Processes(workers=2).run(double, range(4), names(4), Tired())


def say_and_sleep(_job: int, _advance: Callable[[int], None]) -> None:
    print(os.getpid(), flush=True)
    time.sleep(600)


def test_no_worker_outlives_its_parent() -> None:
    code = (
        "from actors.executor import Unheard\n"
        "from actors.processes import Processes\n"
        "from tests.actors.test_processes import names, say_and_sleep\n"
        "if __name__ == '__main__':\n"
        "    Processes(workers=2).run(say_and_sleep, range(2), names(2), Unheard())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while any(map(_is_alive, pids)):
        assert time.monotonic() < deadline, f"workers {pids} outlive their parent"
        time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    """Whether it runs; one that nobody waits for is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
