"""The folder of finished entries: held by readers, placed by builders, evicted whole."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from builders.errors import ArtifactError
from builders.keys import check_key
from builders.store import disk
from builders.store.locks import Announce, Wait, lock, try_lock
from builders.store.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, parse, problems
from builders.store.scratch import Scratch

_EVICTION_LIMIT_S = 30.0
_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A published artifact whose manifest was checked."""

    folder: Path
    manifest: Manifest

    @property
    def key(self) -> str:
        """The content key that it is found by."""
        return self.manifest.recipe.key

    def path(self, name: str) -> Path:
        """Where a file of the entry is; only names that the manifest lists."""
        if name not in self.manifest.files:
            raise ArtifactError(f"{name!r}: not in {self.folder}; it has {sorted(self.manifest.files)}")
        return self.folder / name

    def refuse_damage(self, *, hashes: bool) -> None:
        """Raise unless the files are those of the manifest."""
        wrong = problems(self.folder, self.manifest, hashes=hashes)
        if wrong:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise refused(self.folder, wrong[0] + more)


def refused(folder: Path, problem: object) -> ArtifactError:
    """The error for an entry that must not be used."""
    return ArtifactError(f"{folder}: {problem}; delete this folder and build it again")


class Shelf:
    """Entries by key. Readers share a lock on an entry's manifest; an eviction takes it alone."""

    def __init__(self, root: Path, scratch: Scratch, announce: Announce) -> None:
        self._entries, self._used, self._pins = root / "entries", root / "used", root / "pins"
        self._scratch = scratch
        self._wait = Wait(limit_s=_EVICTION_LIMIT_S, announce=announce)

    def folder(self, key: str) -> Path:
        """Where the entry is, or would be."""
        return self._entries / check_key(key)

    def names(self) -> list[str]:
        """Every name on the shelf, those that are no keys included."""
        return sorted(path.name for path in self._entries.glob("*"))

    @contextmanager
    def held(self, key: str) -> Iterator[Entry | None]:
        """The entry, which nobody can evict meanwhile; None when there is none."""
        handle = self._share(self.folder(key), key)
        if handle is None:
            yield None
            return
        try:
            yield Entry(folder=self.folder(key), manifest=_read(self.folder(key), handle, key))
        finally:
            os.close(handle)

    def _share(self, folder: Path, key: str) -> int | None:
        while (seen := _stat(folder)) is not None:
            try:
                return lock(folder / MANIFEST, f"entry {key}", self._wait, shared=True)
            except FileNotFoundError as error:
                if _is_still(folder, seen):
                    raise refused(folder, f"has no {MANIFEST}") from error
            except (NotADirectoryError, PermissionError) as error:
                raise refused(folder, f"cannot be read ({error.strerror})") from error
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                raise refused(folder, f"{MANIFEST} is a link") from error
        return None

    def place(self, draft: Path, key: str) -> bool:
        """Publish a finished draft; False if an entry of that key is already there."""
        disk.make_folder(self._entries)
        try:
            draft.rename(self.folder(key))
        except OSError as error:
            if error.errno not in _OCCUPIED:
                raise
            return False
        disk.sync(self._entries)
        return True

    def evict(self, key: str) -> bool:
        """Move an entry out of sight, then delete it; False if it is pinned, in use or gone."""
        folder = self.folder(key)
        seen = _stat(folder)
        try:
            handle = try_lock(folder / MANIFEST)
        except PermissionError:
            return False
        except OSError:
            # The same folder before and after, without a manifest to lock: it has no reader.
            return _is_still(folder, seen) and self._discard(key)
        if handle is None:
            return False
        try:
            return self._discard(key)
        finally:
            os.close(handle)

    def _discard(self, key: str) -> bool:
        gone = not self.pinned(key) and self._scratch.discard(self.folder(key))
        if gone:
            (self._used / key).unlink(missing_ok=True)
        return gone

    def pin(self, key: str) -> None:
        """Protect an entry; the caller holds it, so it cannot be half evicted."""
        disk.make_folder(self._pins)
        (self._pins / key).touch()

    def unpin(self, key: str) -> None:
        """Leave an entry to the least-recently-used order again."""
        (self._pins / check_key(key)).unlink(missing_ok=True)

    def pinned(self, key: str) -> bool:
        """Whether prune must leave it."""
        return (self._pins / key).exists()

    def touch(self, key: str) -> None:
        """Record a use. Only advice for prune: a full or read-only store serves all the same."""
        now = time.time_ns()
        with suppress(OSError):
            disk.make_folder(self._used)
            (self._used / key).touch()
            os.utime(self._used / key, ns=(now, now))

    def last_used_s(self, key: str) -> float:
        """Seconds since the epoch."""
        seen = _stat(self._used / key) or _stat(self.folder(key))
        return seen.st_mtime if seen else 0.0


def _stat(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_still(path: Path, seen: os.stat_result | None) -> bool:
    now = _stat(path)
    return seen is not None and now is not None and os.path.samestat(seen, now)


def _read(folder: Path, handle: int, key: str) -> Manifest:
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_MANIFEST_BYTES:
        raise refused(folder, f"{MANIFEST} is not a plain file of at most {MAX_MANIFEST_BYTES:,} bytes")
    try:
        with open(handle, "rb", closefd=False) as file:
            return parse(file.read(), key)
    except ArtifactError as error:
        raise refused(folder, error) from error
    except RecursionError as error:
        raise refused(folder, f"{MANIFEST} is nested too deeply") from error
