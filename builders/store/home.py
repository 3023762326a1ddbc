"""A home that many machines share: whole entries among objects that can only be written, listed and read."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Event

from builders.errors import ArtifactError
from builders.keys import check_key
from builders.store import disk, home_publish, home_upkeep
from builders.store.attempts import FORMAT, PINNED, USED, Attempt, attempts_in
from builders.store.manifest import MANIFEST, MAX_MANIFEST_BYTES, FileRecord, Manifest, parse
from builders.store.notes import HomeNotes
from builders.store.objects import Found, MissingObject, Objects, at_once
from builders.store.upkeep import Listed, Pruned
from builders.store.urls import file_system, home_url

FILES_AT_ONCE = 4
MIN_AGE_S = 24 * 3600.0
"""An upload takes less, from the last of its files to its end."""


class Home:
    """Entries behind a URL. Publishers, readers and pruners may be at it at once, on many machines."""

    def __init__(self, url: str) -> None:
        self.url = home_url(url)
        self.objects = Objects(file_system(self.url), self.url)
        self.notes = HomeNotes(self.objects)

    def __str__(self) -> str:
        return str(self.url)

    def require(self) -> None:
        """Refuse a place that is no home."""
        if not self._is_home():
            raise ArtifactError(
                f"{self.url}: no such store; give the --store_dir that `rankforge build` used"
            )

    def prepare(self) -> None:
        """Refuse, before any work, a place that cannot be reached, read or written; make it a home."""
        try:
            self.objects.now_s()
        except MissingObject as error:
            raise ArtifactError(
                f"{self.url}: cannot be written or read there; make the bucket or folder, or give another"
            ) from error
        if not self._is_home():
            self.objects.write(FORMAT)

    def _is_home(self) -> bool:
        try:
            return self.objects.read(FORMAT) is not None
        except MissingObject:
            return False

    def known_keys(self) -> set[str]:
        """Of all entries."""
        return {attempt.key for attempt in attempts_in(self.objects.listing("entries"))}

    def attempts(self, key: str) -> list[Attempt]:
        """The whole ones, of which the first is the entry."""
        return attempts_in(self.objects.listing(f"entries/{check_key(key)}"))

    def read(self, attempt: Attempt) -> Manifest:
        """The checked manifest."""
        name = attempt.object(attempt.digest)
        data = self.objects.read(name, end=MAX_MANIFEST_BYTES + 1)
        if hashlib.sha256(data).hexdigest() != attempt.digest:
            raise self.refused(attempt, f"{MANIFEST} does not have its sha256 {attempt.digest[:12]}")
        try:
            return parse(data, attempt.key)
        except ArtifactError as error:
            raise self.refused(attempt, error) from error

    def fetch(self, key: str, folder: Path, only: Collection[str] | None = None) -> Manifest | None:
        """Write an entry's files, or some of them, into an empty folder; None when there is no entry.

        What is written has the hashes of the manifest. An entry that is removed meanwhile is none.
        """
        gone: set[Attempt] = set()
        while left := [attempt for attempt in self.attempts(key) if attempt not in gone]:
            try:
                return self._fetch(left[0], folder, only)
            except MissingObject as error:
                if left[0] in self.attempts(key):
                    raise self.refused(left[0], error) from error
                gone.add(left[0])
                shutil.rmtree(folder)
                folder.mkdir()
        return None

    def _fetch(self, attempt: Attempt, folder: Path, only: Collection[str] | None) -> Manifest:
        manifest = self.read(attempt)
        if wrong := self.wrong_sizes(attempt, manifest):
            raise MissingObject(wrong[0])
        if only is not None:
            manifest = _part(manifest, only)
        disk.require_free(folder, f"{manifest.recipe.kind} {attempt.key}", manifest.size_bytes)
        if MANIFEST in manifest.files:
            raise self.refused(attempt, f"has a file {MANIFEST!r} of its own")
        try:
            self._copy_all(attempt, manifest.files, folder)
        except OSError as error:
            if error.errno in disk.FULL:
                raise
            raise self.refused(attempt, f"its files cannot be written ({error.strerror})") from error
        return manifest

    def _copy_all(self, attempt: Attempt, files: Mapping[str, FileRecord], folder: Path) -> None:
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)

        def copy(name: str, stop: Event) -> None:
            self._copy(attempt, name, files[name], folder / name, stop)

        at_once(copy, files, FILES_AT_ONCE)

    def _copy(self, attempt: Attempt, name: str, record: FileRecord, target: Path, stop: Event) -> None:
        digest, size_bytes = hashlib.sha256(), 0
        with target.open("xb") as file:
            for chunk in self.objects.stream(attempt.object(record.sha256), record.size_bytes):
                if stop.is_set():
                    return
                digest.update(chunk)
                size_bytes += file.write(chunk)
        if digest.hexdigest() != record.sha256 or size_bytes != record.size_bytes:
            raise self.refused(attempt, f"{name!r} does not have its sha256 {record.sha256[:12]}")
        target.chmod(target.stat().st_mode & ~0o222)
        disk.sync(target)

    def wrong_sizes(
        self, attempt: Attempt, manifest: Manifest, found: Mapping[str, Found] | None = None
    ) -> list[str]:
        """Files that are not there, or not as long as the manifest says; nothing of them is read."""
        if found is None:
            found = self.objects.listing(attempt.folder)
        wrong = []
        for name, record in manifest.files.items():
            there = found.get(attempt.object(record.sha256))
            if there is None:
                wrong.append(f"{name!r} is missing")
            elif there.size_bytes != record.size_bytes:
                wrong.append(f"{name!r} has {there.size_bytes:,} bytes, not {record.size_bytes:,}")
        return wrong

    def publish(self, folder: Path, manifest: Manifest) -> None:
        """Upload an entry, unless it is there; it is seen when all of it is."""
        home_publish.publish(self, folder, manifest)

    def listing(self) -> list[Listed]:
        """Every entry, refused ones included, by key."""
        return home_upkeep.listing(self)

    def verify(self, key: str | None = None) -> dict[str, list[str]]:
        """Reads everything: the problems of every entry, or of one; no problem, an empty list."""
        return home_upkeep.verify(self, key)

    def prune(
        self, max_bytes: int | None = None, *, keep: Collection[str] = (), min_age_s: float = MIN_AGE_S
    ) -> Pruned:
        """Delete what dead publishers left, then evict the least recently used beyond the bound.

        What is pinned, among `keep`, or was written or used within `min_age_s` stays: no lock says here who
        is alive.
        """
        return home_upkeep.prune(self, max_bytes, keep, min_age_s)

    def pin(self, key: str) -> None:
        """Keep an entry whatever the bound."""
        home_upkeep.pin(self, key)

    def unpin(self, key: str) -> None:
        """Let an entry be evicted again."""
        self.objects.delete(PINNED.format(check_key(key)))

    def drop(self, attempt: Attempt) -> None:
        """Remove an attempt: it is out of sight before anything of it is missing."""
        self.objects.delete(attempt.marker)
        names = self.objects.listing(attempt.folder)
        at_once(lambda name, _stop: self.objects.delete(name), names, FILES_AT_ONCE)
        self.objects.tidy(attempt.folder)

    def touch(self, key: str) -> None:
        """Record a use."""
        self.objects.write(USED.format(check_key(key)), b"used\n")

    def uses(self) -> dict[str, float]:
        """When entries were used last, by key, in seconds since the epoch."""
        found = self.objects.listing("used").items()
        return {name.split("/")[1]: one.modified_s for name, one in found}

    def refused(self, attempt: Attempt, problem: object) -> ArtifactError:
        """The error for an entry that must not be used."""
        return ArtifactError(
            f"{self.url}/entries/{attempt.key}: {problem}; delete what is below this name and build it again"
        )


def _part(manifest: Manifest, names: Collection[str]) -> Manifest:
    missing = sorted(set(names) - manifest.files.keys())
    if missing:
        raise ArtifactError(
            f"{missing[0]!r}: not in entry {manifest.recipe.key}; it has {sorted(manifest.files)}"
        )
    return replace(manifest, files={name: manifest.files[name] for name in names})
