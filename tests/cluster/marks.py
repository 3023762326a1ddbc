"""Whatever a command starts, however it is started: it has a word of the command's in its environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.own_ray import PLAIN, ROOT

_MARK = "RANKFORGE_TEST_MARK"


class Mark:
    """Of one command."""

    def __init__(self) -> None:
        self._name = str(uuid.uuid4())

    def start(
        self, *args: object, env: Mapping[str, str] | None = None, stderr: int = subprocess.PIPE
    ) -> subprocess.Popen[str]:
        """`rankforge`, in a process group of its own, as shells start commands."""
        command = [sys.executable, "-u", "-m", "cluster", *map(str, args)]
        return subprocess.Popen(
            command, cwd=ROOT, env={**PLAIN, **(env or {}), _MARK: self._name}, text=True,
            start_new_session=True, stdout=subprocess.PIPE, stderr=stderr,
        )  # fmt: skip

    def processes(self) -> dict[int, str]:
        """Those that live, and what they are called."""
        found, mark = {}, f"{_MARK}={self._name}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:  # gone, or another user's
                continue
        return found

    def wait_for(self, title: str, timeout_s: float = 120) -> int:
        """Until there is a process that is called so; which it is."""
        deadline = time.monotonic() + timeout_s
        while not (found := [pid for pid, name in self.processes().items() if title in name]):
            assert time.monotonic() < deadline, f"no {title}: {self.processes()}"
            time.sleep(0.02)
        return found[0]

    def are_gone(self) -> bool:
        """Ray's own processes take a moment after the one that started them."""
        deadline = time.monotonic() + 60
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        return not self.processes()


@contextmanager
def marking() -> Iterator[Mark]:
    """What does not end by itself is ended with the block."""
    mark = Mark()
    try:
        yield mark
    finally:
        for process in mark.processes():
            os.kill(process, signal.SIGKILL)
