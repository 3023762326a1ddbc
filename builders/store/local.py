"""The store: build once, publish whole, find by key, keep what was used last."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from builders.errors import ArtifactError
from builders.keys import Json, Recipe, check_key
from builders.store import disk, upkeep
from builders.store.locks import Announce, Wait, locked
from builders.store.manifest import MANIFEST, Manifest, describe
from builders.store.scratch import Scratch
from builders.store.shelf import Entry, Shelf
from builders.store.upkeep import Listed, Pruned

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Draft:
    """An entry in the making: write files below `path`."""

    path: Path
    metadata: dict[str, Json] = field(default_factory=dict)
    """What should be known of the artifact but does not change its key."""
    published: Entry | None = None

    @property
    def entry(self) -> Entry:
        """What the draft became."""
        if self.published is None:
            raise ArtifactError(f"{self.path}: not published yet; leave the publish block first")
        return self.published


class Store:
    """Immutable entries in a local folder, shared by threads, processes and hosts.

    Hosts may share it when their file system keeps flock among them. `max_bytes` bounds the
    entries: every publish evicts the least recently used. An entry is only sure to stay while it
    is open or pinned.
    """

    def __init__(
        self, root: Path, max_bytes: int | None = None, *, announce: Announce = _log.warning
    ) -> None:
        self.root, self.max_bytes = root, max_bytes
        self._announce = announce
        self._scratch = Scratch(root / "scratch")
        self._shelf = Shelf(root, self._scratch, announce)
        self._hashed: dict[str, Manifest] = {}

    def find(self, key: str, *, verify: bool = False) -> Entry | None:
        """The entry, its manifest and file sizes checked; its hashes too with `verify`."""
        with self._shelf.held(key) as entry:
            if entry:
                self._check(entry, hashes=verify)
            return entry

    @contextmanager
    def open(self, key: str, *, verify: bool = True) -> Iterator[Entry]:
        """The entry, safe from eviction; its hashes are checked when this store first opens it."""
        with self._shelf.held(key) as entry:
            if entry is None:
                raise ArtifactError(f"{key}: not in {self.root}; build it first")
            self._check(entry, hashes=verify and self._hashed.get(key) != entry.manifest)
            yield entry

    def _check(self, entry: Entry, *, hashes: bool) -> None:
        entry.refuse_damage(hashes=hashes)
        if hashes:
            self._hashed[entry.key] = entry.manifest
        self._shelf.touch(entry.key)

    def get_or_build(
        self,
        recipe: Recipe,
        build: Callable[[Path], None],
        *,
        needs_bytes: int = 0,
        wait_s: float = 3600.0,
    ) -> Entry:
        """The entry, built by whoever comes first; the others wait, and take over if it dies."""
        what = f"{recipe.kind} {recipe.key}"
        found = self.find(recipe.key)
        if found:
            return found
        with disk.full_disk_refused(self.root, what):
            disk.make_folder(self.root / "locks")
            lock = self.root / "locks" / recipe.key
            with locked(lock, what, Wait(limit_s=wait_s, announce=self._announce)):
                return self.find(recipe.key) or self._build(recipe, build, needs_bytes)

    def _build(self, recipe: Recipe, build: Callable[[Path], None], needs_bytes: int) -> Entry:
        with self.publish(recipe, needs_bytes=needs_bytes) as draft:
            build(draft.path)
        return draft.entry

    @contextmanager
    def publish(self, recipe: Recipe, *, needs_bytes: int = 0) -> Iterator[Draft]:
        """A draft to fill. It appears whole when the block ends, and not at all when it raises.

        It does not keep others from building the same: the first to finish wins.
        """
        what = f"{recipe.kind} {recipe.key}"
        disk.make_folder(self.root)
        self._scratch.sweep()
        disk.require_free(self.root, what, needs_bytes)
        with disk.full_disk_refused(self.root, what), self._scratch.folder() as folder:
            draft = Draft(path=folder)
            with disk.full_disk_refused(self.root, what, folder):
                yield draft
                draft.published = self._seal(draft, recipe)
        if self.max_bytes is not None:
            upkeep.shrink(self._shelf, self.max_bytes, keep=(recipe.key,))

    def _seal(self, draft: Draft, recipe: Recipe) -> Entry:
        manifest = describe(draft.path, recipe, draft.metadata)
        disk.write(draft.path / MANIFEST, manifest.to_bytes())
        disk.sync_folders(draft.path)
        while not self._shelf.place(draft.path, recipe.key):
            theirs = self.find(recipe.key)
            if theirs:
                return theirs
        self._hashed[recipe.key] = manifest
        self._shelf.touch(recipe.key)
        return Entry(folder=self._shelf.folder(recipe.key), manifest=manifest)

    def pin(self, key: str) -> None:
        """Keep an entry whatever the bound."""
        with self._shelf.held(key) as entry:
            if entry is None:
                raise ArtifactError(f"{key}: not in {self.root}; only what is there can be pinned")
            entry.refuse_damage(hashes=False)
            self._shelf.pin(key)

    def unpin(self, key: str) -> None:
        """Let an entry be evicted again."""
        self._shelf.unpin(key)

    def remove(self, key: str) -> bool:
        """Evict one entry, damaged or not; False if it is pinned, in use or not there."""
        return self._shelf.evict(key)

    def prune(self, max_bytes: int | None = None, *, keep: Collection[str] = ()) -> Pruned:
        """Delete what dead processes left, then evict the least recently used beyond the bound.

        What is pinned, in use, or among `keep` stays.
        """
        self._scratch.sweep()
        return upkeep.shrink(self._shelf, self.max_bytes if max_bytes is None else max_bytes, keep)

    def listing(self) -> list[Listed]:
        """Every entry, refused ones included, by key."""
        return upkeep.listing(self._shelf)

    def verify(self, key: str | None = None) -> dict[str, list[str]]:
        """Reads everything: the problems of every entry, or of one; no problem, an empty list."""
        names = self._shelf.names() if key is None else [check_key(key)]
        return {name: upkeep.damage(self._shelf, name) for name in names}

    def read_blob(self, name: str) -> bytes | None:
        """A small mutable file, such as a timing cache; None if nobody wrote it."""
        try:
            return self._blob(name).read_bytes()
        except FileNotFoundError:
            return None

    def write_blob(self, name: str, data: bytes) -> None:
        """Replace a blob at once; the last writer wins. Blobs do not count against the bound."""
        target = self._blob(name)
        disk.make_folder(self.root)
        with (
            disk.full_disk_refused(self.root, f"blob {name} ({len(data):,} bytes)"),
            self._scratch.folder() as folder,
        ):
            disk.make_folder(target.parent)
            disk.write(folder / "blob", data)
            (folder / "blob").replace(target)
            disk.sync(target.parent)

    def blob_names(self, start: str = "") -> list[str]:
        """Of the blobs whose names start so."""
        return sorted(path.name for path in (self.root / "blobs").glob("*") if path.name.startswith(start))

    def _blob(self, name: str) -> Path:
        if "/" in disk.check_name(name):
            raise ArtifactError(f"{name!r}: a blob's name must have no '/'")
        return self.root / "blobs" / name
