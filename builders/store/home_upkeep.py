"""Looking after a shared home: what it holds, what is damaged, what must stay and what has to go."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from threading import Event
from typing import TYPE_CHECKING

from builders.errors import ArtifactError
from builders.keys import check_key
from builders.store.attempts import FOLDERS, PINNED, USED, Attempt, attempts_in
from builders.store.home_publish import DEAD_PRUNER_S, wait_for_pruners
from builders.store.manifest import FileRecord, Manifest
from builders.store.objects import Found, at_once
from builders.store.upkeep import Listed, Pruned

if TYPE_CHECKING:
    from builders.store.home import Home

_AT_ONCE = 8


@dataclass(frozen=True)
class _Seen:
    """Everything that a home, or a part of it, held at a moment."""

    objects: Mapping[str, Found]

    @cached_property
    def by_key(self) -> dict[str, list[Attempt]]:
        """The whole attempts of every entry."""
        found: dict[str, list[Attempt]] = {}
        for attempt in attempts_in(self.objects):
            found.setdefault(attempt.key, []).append(attempt)
        return found

    @cached_property
    def uploads(self) -> dict[tuple[str, str], dict[str, Found]]:
        """The files of every attempt, whole or not, by its key and number."""
        found: dict[tuple[str, str], dict[str, Found]] = {}
        for name, one in self.objects.items():
            parts = name.split("/")
            if parts[0] == "files" and len(parts) == 4:
                found.setdefault((parts[1], parts[2]), {})[name] = one
        return found

    @cached_property
    def _used_s(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, one in self.objects.items():
            folder, _, rest = name.partition("/")
            if folder in ("entries", "used"):
                key = rest.partition("/")[0]
                found[key] = max(found.get(key, 0.0), one.modified_s)
        return found

    def last_used_s(self, key: str) -> float:
        """When it was used or published last."""
        return self._used_s.get(key, 0.0)

    def size_bytes(self, attempt: Attempt) -> int:
        """Of all its files."""
        return sum(found.size_bytes for found in self.files(attempt).values())

    def files(self, attempt: Attempt) -> dict[str, Found]:
        """Its files."""
        return self.uploads.get((attempt.key, attempt.number), {})


def listing(home: Home) -> list[Listed]:
    """Every entry, refused ones included, by key."""
    seen = _Seen(home.objects.listing())
    first = [attempts[0] for attempts in seen.by_key.values()]
    found = at_once(lambda attempt, _stop: _listed(home, seen, attempt), first, _AT_ONCE)
    return [item for item in found if item is not None]


def _listed(home: Home, seen: _Seen, attempt: Attempt) -> Listed | None:
    manifest, problem = None, ""
    try:
        manifest = home.read(attempt)
        if wrong := home.wrong_sizes(attempt, manifest, seen.files(attempt)):
            manifest, problem = None, str(home.refused(attempt, wrong[0]))
    except ArtifactError as error:
        problem = str(error)
    if problem and attempt not in home.attempts(attempt.key):
        return None
    return Listed(
        key=attempt.key,
        size_bytes=seen.size_bytes(attempt),
        last_used_s=seen.last_used_s(attempt.key),
        pinned=PINNED.format(attempt.key) in seen.objects,
        manifest=manifest,
        problem=problem,
    )


def verify(home: Home, key: str | None = None) -> dict[str, list[str]]:
    """Reads everything: the problems of every entry, or of one."""
    if key is not None:
        found = home.attempts(key)
        return {key: _damage(home, found[0]) if found else ["is not in the store"]}
    names = home.objects.listing("entries")
    entries = {attempt.key: attempt for attempt in reversed(attempts_in(names))}
    strange = {name for name in names if not attempts_in([name])}
    problems = {name.removeprefix("entries/"): ["is not an entry"] for name in strange}
    return problems | {key: _damage(home, attempt) for key, attempt in sorted(entries.items())}


def _damage(home: Home, attempt: Attempt) -> list[str]:
    try:
        manifest = home.read(attempt)
        wrong = home.wrong_sizes(attempt, manifest) + _extra(home, attempt, manifest)
        return wrong or _wrong_hashes(home, attempt, manifest)
    except ArtifactError as error:
        return [str(error)]


def _extra(home: Home, attempt: Attempt, manifest: Manifest) -> list[str]:
    digests = {attempt.digest, *(record.sha256 for record in manifest.files.values())}
    return [
        f"{name!r} is extra"
        for name in sorted(home.objects.listing(attempt.folder))
        if name.rpartition("/")[2] not in digests
    ]


def _wrong_hashes(home: Home, attempt: Attempt, manifest: Manifest) -> list[str]:
    def wrong(item: tuple[str, FileRecord], stop: Event) -> list[str]:
        name, record = item
        digest = hashlib.sha256()
        for chunk in home.objects.stream(attempt.object(record.sha256), record.size_bytes):
            if stop.is_set():
                break
            digest.update(chunk)
        sound = digest.hexdigest() == record.sha256
        return [] if sound else [f"{name!r} does not have its sha256 {record.sha256[:12]}"]

    return list(chain.from_iterable(at_once(wrong, manifest.files.items(), _AT_ONCE)))


def pin(home: Home, key: str) -> None:
    """Keep an entry: a pruner sees the pin, or is waited for and has left the entry."""
    for attempt in home.attempts(key)[:1]:
        home.read(attempt)
        home.objects.write(PINNED.format(key), b"pinned\n")
        wait_for_pruners(home, key)
        if home.attempts(key):
            return
        home.objects.delete(PINNED.format(key))
    raise ArtifactError(f"{key}: not in {home.url}; only what is there can be pinned")


def prune(home: Home, max_bytes: int | None, keep: Collection[str], min_age_s: float) -> Pruned:
    """Delete what is of no use to anybody, then evict in the order of last use until the bound holds."""
    now_s = home.objects.now_s()
    seen = _Seen(home.objects.listing())
    garbage_bytes = _sweep(home, seen, now_s, min_age_s)
    by_key = seen.by_key
    sizes = {key: seen.size_bytes(attempts[0]) for key, attempts in by_key.items()}
    total = kept = sum(sizes.values())
    evicted = []
    for key in sorted(by_key, key=seen.last_used_s):
        if max_bytes is None or kept <= max_bytes:
            break
        is_new = now_s - seen.last_used_s(key) < min_age_s
        if key not in keep and not is_new and _evict(home, seen, key, by_key[key]):
            evicted.append(key)
            kept -= sizes[key]
    for folder in FOLDERS:
        home.objects.tidy(folder)
    return Pruned(
        evicted=tuple(evicted), freed_bytes=total - kept, kept_bytes=kept, garbage_bytes=garbage_bytes
    )


def _evict(home: Home, seen: _Seen, key: str, attempts: list[Attempt]) -> bool:
    """Remove an entry, unless it was pinned, used or published again."""
    with _condemned(home, key):
        now = _Seen(home.objects.listing(f"entries/{key}") | home.objects.listing(f"used/{key}"))
        if home.objects.listing(f"pins/{key}") or now.last_used_s(key) > seen.last_used_s(key):
            return False
        for attempt in attempts:
            home.drop(attempt)
        home.objects.delete(USED.format(key))
    return True


@contextmanager
def _condemned(home: Home, key: str) -> Iterator[None]:
    """Say what is about to go; what is looked at from here on has been written before, or by who waits."""
    name = f"condemned/{check_key(key)}/{uuid.uuid4().hex}"
    home.objects.write(name, b"condemned\n")
    try:
        yield
    finally:
        try:
            home.objects.delete(name)
        except ArtifactError:  # publishers would wait for it
            home.objects.delete(name)


def _sweep(home: Home, seen: _Seen, now_s: float, min_age_s: float) -> int:
    """Delete unfinished uploads, second copies, and small objects that belong to nobody; bytes that were."""
    whole = {(attempt.key, attempt.number) for attempt in attempts_in(seen.objects)}
    for key, attempts in seen.by_key.items():
        if len(attempts) > 1:
            _drop_second_copies(home, key)
    freed = 0
    for (key, number), found in seen.uploads.items():
        age_s = now_s - max(one.modified_s for one in found.values())
        if (key, number) not in whole and age_s >= min_age_s:
            freed += _delete_upload(home, key, number, found)
    for name, one in seen.objects.items():
        if _is_stray(seen, name) and now_s - one.modified_s >= max(min_age_s, DEAD_PRUNER_S):
            home.objects.delete(name)
    return freed


def _drop_second_copies(home: Home, key: str) -> None:
    with _condemned(home, key):
        for second in home.attempts(key)[1:]:
            home.drop(second)


def _delete_upload(home: Home, key: str, number: str, found: Mapping[str, Found]) -> int:
    with _condemned(home, key):
        if any(attempt.number == number for attempt in home.attempts(key)):
            return 0
        at_once(lambda name, _stop: home.objects.delete(name), found, _AT_ONCE)
    home.objects.tidy(f"files/{key}/{number}")
    return sum(one.size_bytes for one in found.values())


def _is_stray(seen: _Seen, name: str) -> bool:
    folder, _, rest = name.partition("/")
    return folder in ("probes", "condemned") or (
        folder == "used" and rest.partition("/")[0] not in seen.by_key
    )
