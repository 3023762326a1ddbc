"""Small mutable files beside the entries: what a machine has learned, and may forget."""

from __future__ import annotations

from pathlib import Path

from builders.errors import ArtifactError
from builders.store import disk
from builders.store.scratch import Scratch


class Blobs:
    """Blobs by name; they stay in their folder and are not shared."""

    def __init__(self, root: Path, scratch: Scratch) -> None:
        self._root, self._scratch = root, scratch

    def read(self, name: str) -> bytes | None:
        """None if nobody wrote it."""
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            return None

    def names(self, start: str = "") -> list[str]:
        """Of the blobs whose names start so."""
        return sorted(path.name for path in (self._root / "blobs").glob("*") if path.name.startswith(start))

    def write(self, name: str, data: bytes) -> None:
        """Replace it at once."""
        target = self._path(name)
        disk.make_folder(self._root)
        with (
            disk.full_disk_refused(self._root, f"blob {name} ({len(data):,} bytes)"),
            self._scratch.folder() as folder,
        ):
            disk.make_folder(target.parent)
            disk.write(folder / "blob", data)
            (folder / "blob").replace(target)
            disk.sync(target.parent)

    def _path(self, name: str) -> Path:
        if "/" in disk.check_name(name):
            raise ArtifactError(f"{name!r}: a blob's name must have no '/'")
        return self._root / "blobs" / name
