"""Small file systems, gone with the test however it ends."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

HOLD = 'mount -t tmpfs -o size="$1" tmpfs "$0" && echo mounted && exec cat'


@dataclass(frozen=True)
class Disk:
    """A real file system, which a process holds in mounts of its own."""

    holder: int
    folder: Path
    """Where it is for the commands that `run` runs."""

    @property
    def here(self) -> Path:
        """Where it is for this process, if nothing resolves the path."""
        return Path(f"/proc/{self.holder}/root{self.folder}")

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", "-t", str(self.holder), "-m"]
        return subprocess.run([*enter, *map(str, command)], capture_output=True, text=True, timeout=120)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Disk]:
    """Its process ends with this one's end of a pipe."""
    folder.mkdir(exist_ok=True)
    command = ["unshare", "-m", "sh", "-c", HOLD, str(folder), size]
    with subprocess.Popen(
        command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as holder:
        assert holder.stdin and holder.stdout
        said = holder.stdout.readline().strip()
        if said != "mounted":
            pytest.skip(f"this machine does not mount a tmpfs: {said}")
        yield Disk(holder.pid, folder)
