"""The store: build once, publish whole, find by key, keep what was used last, share with other machines."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import cast

from builders.errors import ArtifactError
from builders.keys import Recipe, check_key
from builders.store import disk, upkeep
from builders.store.blobs import Blobs
from builders.store.draft import Draft
from builders.store.home import Home
from builders.store.locks import Announce, Wait, locked
from builders.store.manifest import MANIFEST, Manifest, describe
from builders.store.notes import Notes
from builders.store.objects import at_once
from builders.store.place import StorePlace
from builders.store.scratch import Scratch
from builders.store.shelf import Entry, Shelf
from builders.store.upkeep import Listed, Pruned

_log = logging.getLogger(__name__)
_AT_ONCE = 4
_TELL_AFTER_S = 3600.0
"""A use that the home has heard of is told again only after so long."""


class Store:
    """Immutable entries in a local folder, shared by threads, processes and hosts.

    Hosts may share it when their file system keeps flock among them. `max_bytes` bounds the
    entries: every publish evicts the least recently used. An entry is only sure to stay while it
    is open or pinned.

    With a home, the folder is a cache of it: what is not here is fetched from there, what is built here is
    published there. Listing, verifying and pruning look after the folder; the home has the same methods.
    """

    def __init__(
        self,
        root: Path,
        max_bytes: int | None = None,
        *,
        home: Home | None = None,
        announce: Announce = _log.warning,
    ) -> None:
        self.root, self.max_bytes, self.home = root, max_bytes, home
        self._announce = announce
        self._scratch = Scratch(root / "scratch")
        self._shelf = Shelf(root, self._scratch, announce)
        self._blobs = Blobs(root, self._scratch)
        self.notes: Notes = home.notes if home else self._blobs
        self._hashed: dict[str, Manifest] = {}
        self._told: set[str] = set()

    def __str__(self) -> str:
        return str(self.root)

    @property
    def place(self) -> StorePlace:
        """Where it is."""
        return StorePlace(folder=self.root, url=self.home.url.whole if self.home else None)

    def known_keys(self) -> set[str]:
        """Of the entries here and at home."""
        here = {key for key in self._shelf.names() if upkeep.is_key(key)}
        return here | self.home.known_keys() if self.home else here

    def find(self, key: str, *, verify: bool = False) -> Entry | None:
        """The entry, its manifest and file sizes checked; its hashes too with `verify`.

        What comes from a home has been hashed on its way.
        """
        found = self._find(key, verify=verify)
        if self.home is None:
            return found
        if found:
            self._tell(self.home, key)
            return found
        return self._fetch(self.home, key)

    def _find(self, key: str, *, verify: bool = False) -> Entry | None:
        with self._shelf.held(key) as entry:
            if entry:
                self._check(entry, hashes=verify)
            return entry

    @contextmanager
    def open(self, key: str, *, verify: bool = True) -> Iterator[Entry]:
        """The entry, safe from eviction; its hashes are checked when this store first opens it."""
        if self.home:
            self.find(key)
        with self._open(key, verify=verify) as entry:
            yield entry

    @contextmanager
    def _open(self, key: str, *, verify: bool = True) -> Iterator[Entry]:
        with self._shelf.held(key) as entry:
            if entry is None:
                raise ArtifactError(f"{key}: not in {self.root}; build it first")
            self._check(entry, hashes=verify and self._hashed.get(key) != entry.manifest)
            yield entry

    @contextmanager
    def open_part(self, key: str, names: Collection[str]) -> Iterator[Entry]:
        """Some files of an entry, safe from eviction: only they are fetched, unless all of it is here.

        What is fetched is an entry here, of a key of its own.
        """
        part = Recipe("part", {"entry": check_key(key), "files": sorted(set(names))})
        is_whole = self._find(key) is not None
        if self.home and not is_whole:
            self._tell(self.home, key)
            if self._find(part.key) is None:
                self._fetch(self.home, key, part)
        with self._open(key if is_whole else part.key) as entry:
            for name in names:
                entry.path(name)
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
        if found and (self.home is None or self.home.attempts(recipe.key)):
            return found
        with self._locked(recipe.key, what, wait_s):
            found = self.find(recipe.key)
            if found is None:
                return self._build(recipe, build, needs_bytes)
            self._share(recipe.key)
            return found

    def _share(self, key: str) -> None:
        """Publish at home what is here, unless it is there."""
        with self._shelf.held(key) as entry:
            if entry and self.home:
                self.home.publish(entry.folder, entry.manifest)

    @contextmanager
    def _locked(self, name: str, what: str, wait_s: float = 3600.0) -> Iterator[None]:
        with disk.full_disk_refused(self.root, what):
            disk.make_folder(self.root / "locks")
            with locked(self.root / "locks" / name, what, Wait(limit_s=wait_s, announce=self._announce)):
                yield

    def bring(self, keys: Collection[str]) -> set[str]:
        """See that entries are both here and at home, where either has them; those that are here then."""
        here = {key for key in keys if self._find(key)}
        if self.home is None:
            return here
        there, uses = self.home.known_keys(), self.home.uses()
        recent = time.time() - _TELL_AFTER_S
        self._told |= {key for key in keys if uses.get(key, 0.0) > recent}

        def move(key: str, _stop: Event) -> Entry | None:
            found = self.find(key)
            if key not in there:
                self._share(key)
            return found

        return {entry.key for entry in at_once(move, sorted(here | (set(keys) & there)), _AT_ONCE) if entry}

    def _fetch(self, home: Home, key: str, part: Recipe | None = None) -> Entry | None:
        """What the home has of an entry; several that want it wait for one."""
        name, what = (part.key if part else key), f"entry {key}"
        if not home.attempts(key):
            return None
        with self._locked(f"{name}.fetch", what):
            return self._find(name) or self._fetch_now(home, key, part)

    def _fetch_now(self, home: Home, key: str, part: Recipe | None) -> Entry | None:
        only = cast("list[str]", part.inputs["files"]) if part else None
        with self._scratch.folder() as folder, disk.full_disk_refused(self.root, f"entry {key}", folder):
            manifest = home.fetch(key, folder, only)
            if manifest is None:
                return None
            manifest = replace(manifest, recipe=part) if part else manifest
            disk.write(folder / MANIFEST, manifest.to_bytes())
            disk.sync_folders(folder)
            entry = self._place(folder, manifest)
        self._tell(home, key)
        self._shrink(entry.key)
        return entry

    def _tell(self, home: Home, key: str) -> None:
        """Record a use at home, once: it is only advice for prune."""
        if key not in self._told:
            self._told.add(key)
            with suppress(ArtifactError):
                home.touch(key)

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
        self._share(recipe.key)
        self._shrink(recipe.key)

    def _shrink(self, keep: str) -> None:
        if self.max_bytes is not None:
            upkeep.shrink(self._shelf, self.max_bytes, keep=(keep,))

    def _seal(self, draft: Draft, recipe: Recipe) -> Entry:
        manifest = describe(draft.path, recipe, draft.metadata)
        disk.write(draft.path / MANIFEST, manifest.to_bytes())
        disk.sync_folders(draft.path)
        return self._place(draft.path, manifest)

    def _place(self, folder: Path, manifest: Manifest) -> Entry:
        key = manifest.recipe.key
        while not self._shelf.place(folder, key):
            theirs = self._find(key)
            if theirs:
                return theirs
        self._hashed[key] = manifest
        self._shelf.touch(key)
        return Entry(folder=self._shelf.folder(key), manifest=manifest)

    def pin(self, key: str) -> None:
        """Keep an entry whatever the bound, at home, and here if it is here."""
        if self.home:
            self.home.pin(key)
        with self._shelf.held(key) as entry:
            if entry:
                entry.refuse_damage(hashes=False)
                self._shelf.pin(key)
            elif self.home is None:
                raise ArtifactError(f"{key}: not in {self.root}; only what is there can be pinned")

    def unpin(self, key: str) -> None:
        """Let an entry be evicted again."""
        if self.home:
            self.home.unpin(key)
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
        """A small mutable file of this folder, such as a timing cache; None if nobody wrote it."""
        return self._blobs.read(name)

    def write_blob(self, name: str, data: bytes) -> None:
        """Replace a blob at once; the last writer wins. Blobs do not count against the bound."""
        self._blobs.write(name, data)
