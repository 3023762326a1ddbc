"""Small files that are written again and again, seen by all who share a store: what is said of jobs."""

from __future__ import annotations

import hashlib
import time
from typing import Protocol

from builders.errors import ArtifactError
from builders.store.attempts import NOTE
from builders.store.objects import MissingObject, Objects

_TRIES = 5
_TRY_S = 0.05


class Notes(Protocol):
    """A folder's blobs, or objects of a home."""

    def read(self, name: str) -> bytes | None:
        """None if nobody wrote it."""

    def write(self, name: str, data: bytes) -> None:
        """Replace it; the last writer wins."""

    def names(self, start: str = "") -> list[str]:
        """Of those whose names start so."""


class HomeNotes:
    """At home each begins with its sha256: storages with folders show a write half done."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def read(self, name: str) -> bytes | None:
        """None if nobody wrote it, or if it is damaged."""
        for _ in range(_TRIES):
            try:
                digest, _, data = self._objects.read(_object(name)).partition(b"\n")
            except MissingObject:
                return None
            if hashlib.sha256(data).hexdigest().encode() == digest:
                return data
            time.sleep(_TRY_S)
        return None

    def write(self, name: str, data: bytes) -> None:
        """Replace it; the last writer wins."""
        self._objects.write(_object(name), hashlib.sha256(data).hexdigest().encode() + b"\n" + data)

    def names(self, start: str = "") -> list[str]:
        """Of those whose names start so."""
        folder = NOTE.format("")
        found = (name.removeprefix(folder) for name in self._objects.listing(folder.rstrip("/")))
        return sorted(name for name in found if name.startswith(start))


def _object(name: str) -> str:
    if not name or "/" in name or not name.isprintable():
        raise ArtifactError(f"{name!r}: not a note's name; it must be printable, without '/'")
    return NOTE.format(name)
