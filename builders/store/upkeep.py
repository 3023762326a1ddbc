"""Looking after the shelf: what is on it, what is damaged, and what has to go."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from builders.errors import ArtifactError
from builders.keys import check_key
from builders.store import disk
from builders.store.manifest import Manifest, problems
from builders.store.shelf import Shelf


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One line of `rankforge store list`."""

    key: str
    size_bytes: int
    last_used_s: float
    pinned: bool
    manifest: Manifest | None
    """None for an entry that is refused."""
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What a prune did; `kept_bytes` exceeds the bound when the rest is pinned or in use."""

    evicted: tuple[str, ...]
    freed_bytes: int
    kept_bytes: int
    garbage_bytes: int = 0
    """What dead publishers left in a shared home; it is not among the freed bytes."""


def shrink(shelf: Shelf, max_bytes: int | None, keep: Collection[str] = ()) -> Pruned:
    """Evict in the order of last use until the bound holds, but not `keep`; without a bound, count only."""
    listed = sorted(listing(shelf), key=lambda item: item.last_used_s)
    total = kept = sum(item.size_bytes for item in listed)
    evicted = []
    for item in listed:
        if max_bytes is None or kept <= max_bytes:
            break
        if item.key not in keep and shelf.evict(item.key):
            evicted.append(item.key)
            kept -= item.size_bytes
    return Pruned(evicted=tuple(evicted), freed_bytes=total - kept, kept_bytes=kept)


def listing(shelf: Shelf) -> list[Listed]:
    """Every entry, refused ones included, by key."""
    names = (name for name in shelf.names() if is_key(name))
    return [item for name in names if (item := _listed(shelf, name))]


def damage(shelf: Shelf, name: str) -> list[str]:
    """Everything wrong with what lies on the shelf under a name."""
    try:
        with shelf.held(name) as entry:
            if entry is None:
                return ["is not in the store"]
            return problems(entry.folder, entry.manifest, hashes=True)
    except ArtifactError as error:
        return [str(error)]


def _listed(shelf: Shelf, key: str) -> Listed | None:
    manifest, problem = None, ""
    try:
        with shelf.held(key) as entry:
            if entry is None:
                return None
            entry.refuse_damage(hashes=False)
            manifest = entry.manifest
    except ArtifactError as error:
        problem = str(error)
    return Listed(
        key=key,
        size_bytes=disk.used_bytes(shelf.folder(key)),
        last_used_s=shelf.last_used_s(key),
        pinned=shelf.pinned(key),
        manifest=manifest,
        problem=problem,
    )


def is_key(name: str) -> bool:
    """Whether it is the name of an entry."""
    try:
        return bool(check_key(name))
    except ArtifactError:
        return False
