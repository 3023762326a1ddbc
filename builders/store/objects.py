"""Named objects behind fsspec: the few operations that every kind of storage has, and errors in one line.

Nothing here assumes a rename, a lock or an atomic write. What is assumed: an object that was written is
listed and read from then on, and an object without content appears at once.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from builders.errors import ArtifactError
from builders.store.urls import FLAT, HomeUrl, driver_errors

CHUNK_BYTES = 8 << 20
_PUTS = 4
_AHEAD = 2
"""Chunks on their way beside the one in hand."""

_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")
"""What drivers call the time of the last write."""

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class MissingObject(ArtifactError):
    """An object that is not there: never was, or was removed."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a listing says of an object."""

    size_bytes: int
    modified_s: float
    """Seconds since the epoch, by the clock of the storage."""


class Objects:
    """The objects below a place, by names with '/'. Threads may share it."""

    def __init__(self, file_system: Any, url: HomeUrl) -> None:
        self._fs, self.url = file_system, url
        self._root = file_system._strip_protocol(url.whole).rstrip("/")
        self._has_folders = url.protocol not in FLAT

    def read(self, name: str, first: int = 0, end: int | None = None) -> bytes:
        """An object's content, or the bytes from `first` to before `end`."""
        with self._explained("cannot read", name):
            data: bytes = self._fs.cat_file(self._path(name), start=first or None, end=end)
            return data

    def stream(self, name: str, size_bytes: int) -> Iterator[bytes]:
        """An object in chunks, the next ones on their way while one is in hand."""
        parts = deque(
            (first, min(first + CHUNK_BYTES, size_bytes)) for first in range(0, size_bytes, CHUNK_BYTES)
        )
        if len(parts) == 1:
            yield self.read(name, *parts[0])
        if len(parts) < 2:
            return
        with ThreadPoolExecutor(_AHEAD) as pool:
            coming = deque(pool.submit(self.read, name, *parts.popleft()) for _ in range(_AHEAD))
            while coming:
                if parts:
                    coming.append(pool.submit(self.read, name, *parts.popleft()))
                yield coming.popleft().result()

    def write(self, name: str, data: bytes = b"") -> None:
        """Write a small object, or replace it."""
        with self._explained("cannot write", name):
            self._put(name, partial(self._fs.pipe_file, self._path(name), data))

    def upload(self, name: str, file: Path, stop: Event) -> None:
        """Write an object from a file, which is not read into memory; the event ends it between chunks."""
        from fsspec.callbacks import Callback

        class Progress(Callback):  # type: ignore[misc]
            def call(self, *_args: Any, **_settings: Any) -> None:
                if stop.is_set():
                    raise InterruptedError("stopped")

        with self._explained("cannot write", name), file.open("rb"):
            put = partial(self._fs.put_file, str(file), self._path(name), callback=Progress())
            self._put(name, put)

    def delete(self, name: str) -> None:
        """Remove an object, unless somebody has."""
        with self._explained("cannot delete", name), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def tidy(self, folder: str) -> None:
        """Remove folders that hold nothing, where the storage has folders at all."""
        if not self._has_folders:
            return
        with suppress(OSError):
            for item in self._fs.ls(self._path(folder), detail=True):
                if item["type"] == "directory":
                    self.tidy(f"{folder}/{item['name'].rstrip('/').rpartition('/')[2]}")
            self._fs.rmdir(self._path(folder))

    def listing(self, folder: str = "") -> dict[str, Found]:
        """Every object below a folder, by its whole name."""
        with self._explained("cannot list", folder):
            self._fs.invalidate_cache()
            top = self._path(folder)
            items = self._walk(top) if self._has_folders else self._fs.find(top, detail=True).values()
            start = f"{self._root}/"
            # A driver may name the folder itself when it holds nothing.
            return {
                name.removeprefix(start): Found(size_bytes=int(item["size"] or 0), modified_s=_time_of(item))
                for item in items
                if (name := item["name"]).startswith(f"{top}/") and item["type"] == "file"
            }

    def now_s(self) -> float:
        """What time it is by the clock of the storage, and that it can be written and read."""
        name = f"probes/{uuid.uuid4().hex}"
        self.write(name, b"probe\n")
        try:
            found = self.listing("probes").get(name)
            return found.modified_s if found else time.time()
        finally:
            self.delete(name)

    def _walk(self, folder: str) -> Iterator[Mapping[str, Any]]:
        """fsspec's own walk takes a folder that cannot be read for an empty one."""
        try:
            items = self._fs.ls(folder, detail=True)
        except FileNotFoundError:
            return
        for item in items:
            if item["type"] == "directory":
                yield from self._walk(item["name"].rstrip("/"))
            else:
                yield item

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _put(self, name: str, write: Callable[[], object]) -> None:
        """Where there are folders, another may remove one that is empty before it is written to."""
        for _ in range(_PUTS - 1 if self._has_folders else 0):
            with suppress(FileNotFoundError):
                self._make_folder(name)
                write()
                return
        write()

    def _make_folder(self, name: str) -> None:
        with suppress(FileExistsError):  # fsspec's own looks and makes, one after the other
            self._fs.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)

    @contextmanager
    def _explained(self, what: str, name: str) -> Iterator[None]:
        """Whatever a driver raises, as one line without secrets."""
        where = f"{self.url}/{name}" if name else str(self.url)
        try:
            yield
        except FileNotFoundError as error:
            raise MissingObject(f"{where}: {what}: there is no such thing") from error
        except driver_errors() as error:
            remedy = (
                "check your rights there" if isinstance(error, PermissionError) else "check URL and network"
            )
            why = self.url.without_secrets(_reason(error))
            raise ArtifactError(f"{where}: {what} ({why}); {remedy}, then run again") from None


def at_once(work: Callable[[ItemT, Event], ResultT], items: Iterable[ItemT], threads: int) -> list[ResultT]:
    """Several at a time; the first error ends all. Long work looks at the event, which says to stop."""
    stop, pool = Event(), ThreadPoolExecutor(threads)
    try:
        return list(pool.map(lambda item: work(item, stop), items))
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:300]


def _time_of(item: Mapping[str, Any]) -> float:
    value = next((item[name] for name in _TIMES if item.get(name) is not None), None)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.timestamp()
    # Without a time an object is new: then it is never taken for garbage.
    return float(value) if value is not None else time.time()
