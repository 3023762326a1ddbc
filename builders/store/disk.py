"""Files and folders: walking, hashing, syncing, and a full disk as one clear error."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from builders.errors import ArtifactError

FULL = (errno.ENOSPC, errno.EDQUOT)


def walk(folder: Path, prefix: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """(name, stat) of everything below that is not a folder; links are named, never followed."""
    with os.scandir(folder) as items:
        for item in sorted(items, key=lambda item: item.name):
            if item.is_dir(follow_symlinks=False):
                yield from walk(folder / item.name, f"{prefix}{item.name}/")
            else:
                yield prefix + item.name, item.stat(follow_symlinks=False)


def used_bytes(folder: Path) -> int:
    """The sum of the file sizes; what vanishes meanwhile counts nothing."""
    total = 0
    try:
        for _, stat in walk(folder):
            total += stat.st_size
    except (FileNotFoundError, NotADirectoryError):
        pass
    return total


def free_bytes(folder: Path) -> int:
    """What an ordinary user may still write to the file system that holds the folder."""
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def sha256(path: Path) -> str:
    """Hexadecimal hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_name(name: str) -> str:
    """The name itself, or an error: names from manifests and callers become paths."""
    parts = name.split("/")
    if all(part.isprintable() and part not in ("", ".", "..") for part in parts) and "\\" not in name:
        return name
    raise ArtifactError(f"{name!r}: must be a relative path of printable names without '..' or '\\'")


def sync(path: Path) -> None:
    """Force a file or a folder to the device."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folders(folder: Path) -> None:
    """Force the names in a folder and in those below it to the device."""
    for path, _, _ in os.walk(folder):
        sync(Path(path))


def make_folder(folder: Path) -> None:
    """Create a folder, durably, unless it exists."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sync(folder.parent)


def write(path: Path, data: bytes) -> None:
    """Create a file, durably."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def delete(folder: Path) -> None:
    """Delete a folder; another process may be doing the same."""
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def full_disk_refused(root: Path, what: str, draft: Path | None = None) -> Iterator[None]:
    """Turn 'no space left' into the bytes that were needed and free, measured before clean-up."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        written, free = (used_bytes(draft) if draft else 0), free_bytes(root)
        raise ArtifactError(
            f"{root}: disk full after {written:,} bytes of {what}: it needs more than the"
            f" {written + free:,} bytes that were free; prune the store or free space"
        ) from error


def require_free(root: Path, what: str, needs_bytes: int) -> None:
    """Refuse now what would only fail later."""
    free = free_bytes(root)
    if needs_bytes > free:
        raise ArtifactError(
            f"{root}: {what} needs {needs_bytes:,} bytes and {free:,} are free; prune the store or free space"
        )


def holds_nothing(path: Path) -> bool:
    """Nothing there, or a folder with nothing in it."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def remove_if_empty(folder: Path) -> None:
    """Remove a folder unless somebody has something in it."""
    with suppress(OSError):
        folder.rmdir()
