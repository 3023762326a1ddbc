"""File locks that end with their process, on this host and on hosts that share the file system.

flock, not fcntl record locks: it excludes threads of one process too. A child that was forked
without exec shares its parent's locks and keeps them while it lives.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from builders.errors import ArtifactError

Announce = Callable[[str], None]
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True, kw_only=True)
class Wait:
    """How long to wait for a lock, and who hears of it."""

    limit_s: float
    announce: Announce
    announce_after_s: float = 1.0
    announce_every_s: float = 30.0
    first_pause_s: float = 0.005
    longest_pause_s: float = 0.25


def try_lock(path: Path, *, shared: bool = False, create: bool = False) -> int | None:
    """One attempt: an open descriptor that holds the lock until closed, or None.

    A network file system wants a writable descriptor for an exclusive lock, and a reader of a
    read-only store has none to offer, hence the two access modes.
    """
    access = os.O_RDONLY if shared else os.O_RDWR
    handle = os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_CREAT if create else 0), 0o666)
    if _flock(path, handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX) and _names(path, handle):
        return handle
    os.close(handle)
    return None


def _flock(path: Path, handle: int, mode: int) -> bool:
    try:
        fcntl.flock(handle, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        os.close(handle)
        if error.errno not in _UNSUPPORTED:
            raise
        raise ArtifactError(
            f"{path}: no flock on this file system ({error.strerror}); put the store on another"
        ) from error
    return True


def _names(path: Path, handle: int) -> bool:
    """Whether the path still names the locked file: it may have been moved before we locked it."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def lock(path: Path, what: str, wait: Wait, *, shared: bool = False, create: bool = False) -> int:
    """`try_lock` until it succeeds, announced and bounded."""
    began, pause_s, announce_at_s = time.monotonic(), wait.first_pause_s, wait.announce_after_s
    while (handle := try_lock(path, shared=shared, create=create)) is None:
        waited_s = time.monotonic() - began
        if waited_s >= wait.limit_s:
            raise ArtifactError(
                f"{what}: still held by {_holder(path)} after {wait.limit_s:g} s;"
                " wait longer, or stop that process if it hangs"
            )
        if waited_s >= announce_at_s:
            wait.announce(f"{what}: waiting for {_holder(path)} ({waited_s:.0f} s)")
            announce_at_s = waited_s + wait.announce_every_s
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, wait.longest_pause_s)
    return handle


@contextmanager
def locked(path: Path, what: str, wait: Wait) -> Iterator[None]:
    """Hold an exclusive lock whose file names its holder.

    The file stays: it is empty but for that line, and removing it would only add races.
    """
    handle = lock(path, what, wait, create=True)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(handle)


def _holder(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(200).decode(errors="replace")
    except FileNotFoundError:
        text = ""
    return text if text.startswith("process ") else "another process"
