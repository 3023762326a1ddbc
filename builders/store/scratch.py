"""Folders that last only as long as the process that made them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from builders.store import disk
from builders.store.locks import try_lock


class Scratch:
    """Drafts of live processes, and what is on its way out.

    Every draft has a lock file beside it, made before the draft and removed after it. So a lock
    that nobody holds, and a folder without a lock, belong to nobody: whoever finds them deletes
    them.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """An empty folder of our own; whatever is left in it at the end is deleted."""
        disk.make_folder(self.root)
        path = self.root / uuid.uuid4().hex
        lock, handle = _lock_of(path), None
        try:
            # A sweep may take a lock file between its creation and our flock: then make another.
            while handle is None:
                handle = try_lock(lock, create=True)
            path.mkdir()
            yield path
        finally:
            if handle is None:  # interrupted
                lock.unlink(missing_ok=True)
            else:
                _drop(path, handle)

    def discard(self, folder: Path) -> bool:
        """Make a folder vanish at once, then delete it; False if another process was faster."""
        disk.make_folder(self.root)
        path = self.root / uuid.uuid4().hex
        try:
            folder.rename(path)
        except FileNotFoundError:
            return False
        disk.delete(path)
        return True

    def sweep(self) -> None:
        """Delete what dead processes left."""
        names = {path.name for path in self.root.glob("*")}
        for name in sorted(names):
            path = self.root / name
            if name.endswith(".lock"):
                _drop_if_dead(path.with_suffix(""))
            elif not _lock_of(path).exists():
                disk.delete(path)


def _lock_of(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _drop_if_dead(path: Path) -> None:
    try:
        handle = try_lock(_lock_of(path))
    except FileNotFoundError:
        return
    if handle is not None:
        _drop(path, handle)


def _drop(path: Path, handle: int) -> None:
    disk.delete(path)
    _lock_of(path).unlink(missing_ok=True)
    os.close(handle)
