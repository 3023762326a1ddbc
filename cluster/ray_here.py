"""A Ray of this machine, which ends with this process, however that comes, and leaves nothing behind."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

import ray

from actors.ray_start import REMEDY, start_ray
from cluster.interrupts import HEARD, leave
from cluster.ray_cluster import silence

_LOOK_S = 0.5
_END_S = 5.0
"""So long it may take to clear up, when Ray has ended."""
_CORE = frozenset({"gcs_server", "raylet"})
"""Without these nothing goes on; Ray's own client waits a minute for them, and then ends the process."""
_PR_SET_CHILD_SUBREAPER = 36
_OWN_RAY = {
    "prestart_worker_first_driver": False,  # replicas need processes of their own
    "worker_niceness": 0,  # by itself, Ray has workers make room for whatever else a machine does
}


@contextmanager
def ray_here(num_cpus: int) -> Iterator[None]:
    """Everything that is started while the block lasts ends with it, what Ray forgets too."""
    _adopt_orphans()
    before = {process.pid for process in _descendants()}
    try:
        with _watched(before):
            start_ray(num_cpus=num_cpus, _system_config=_OWN_RAY)
            silence()
            yield
    finally:
        _in_time(ray.shutdown)
        _end(before)


class _Process(NamedTuple):
    pid: int
    parent: int
    name: str
    is_over: bool


def _processes() -> Iterator[_Process]:
    """Of this machine; none where that is not Linux."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            head, _, tail = file.read_text(errors="replace").rpartition(")")
            pid, _, name = head.partition(" (")
            state, parent, *_ = tail.split()
            yield _Process(int(pid), int(parent), name, state in "ZX")


def _descendants() -> list[_Process]:
    """Of this process; those that run."""
    there, found = [*_processes()], list[_Process]()
    parents = {os.getpid()}
    while children := [one for one in there if one.parent in parents]:
        found += children
        parents = {one.pid for one in children}
    return [one for one in found if not one.is_over]


def _adopt_orphans() -> None:
    """What loses its parent becomes a child of this process: HAProxy outlives whoever started it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _end(before: set[int]) -> None:
    """Kill what is left, and what that starts meanwhile."""
    deadline = time.monotonic() + _END_S
    while left := [one for one in _descendants() if one.pid not in before]:
        for one in left:
            with suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)


@contextmanager
def _watched(before: set[int]) -> Iterator[None]:
    """Where Ray's own processes end before the block does, so does this one: no call of Ray's may return."""
    over = threading.Event()

    def watch() -> None:
        seen: dict[int, str] = {}
        while not over.wait(_LOOK_S):
            if (name := _lost(seen)) and not over.is_set():
                _leave(name, before)

    watching = threading.Thread(target=watch, daemon=True, name="ray-watch")
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


def _lost(seen: dict[int, str]) -> str | None:
    """Which of Ray's processes has ended; all that there are become those that were seen."""
    ours = [one for one in _processes() if one.parent == os.getpid() and one.name in _CORE]
    there = {one.pid: one.name for one in ours if not one.is_over}
    gone = [one.name for one in ours if one.is_over]
    gone += [name for pid, name in seen.items() if pid not in there]
    seen |= there
    return gone[0] if gone else None


def _leave(name: str, before: set[int]) -> NoReturn:
    """The main thread may wait for Ray in a way that nothing interrupts."""
    code = HEARD.sent()  # who tells a whole group to end tells Ray, too
    if code is None:
        print(f"error: Ray's {name} has ended on this machine; start again, and {REMEDY}", file=sys.stderr)
    _end(before)
    atexit.unregister(ray.shutdown)
    _in_time(lambda: leave(code or 1))
    os._exit(code or 1)


def _in_time(work: Callable[[], object]) -> None:
    """What waits for Ray is not waited for."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_END_S)
