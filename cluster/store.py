"""`rankforge store`: what the store holds, whether it is sound, and making room."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from builders.errors import UserError
from builders.store import Home, Store
from builders.store.home import MIN_AGE_S
from cluster.inspect import size
from cluster.store_place import Place, existing_store
from cluster.values import seconds, size_bytes


def listing(place: Place) -> list[dict[str, Any]]:
    """Every entry, the one used last first."""
    entries = sorted(existing_store(place).listing(), key=lambda entry: -entry.last_used_s)
    return [
        {
            "key": entry.key,
            "kind": entry.manifest.recipe.kind if entry.manifest else None,
            "num_bytes": entry.size_bytes,
            "last_used_s": entry.last_used_s,
            "pinned": entry.pinned,
            "problem": entry.problem,
        }
        for entry in entries
    ]


def show(entries: list[dict[str, Any]], console: Console) -> None:
    """The same, for people."""
    table = Table(title=f"{len(entries)} entries, {size(sum(entry['num_bytes'] for entry in entries))}")
    for name in ("key", "kind", "size", "last used", "state"):
        table.add_column(name)
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry["last_used_s"]))
        state = entry["problem"] or ("pinned" if entry["pinned"] else "")
        table.add_row(entry["key"][:16], entry["kind"] or "?", size(entry["num_bytes"]), used, state)
    console.print(table)


def verify(place: Place) -> dict[str, list[str]]:
    """What is wrong with every entry after hashing all of it; an empty list is sound."""
    return existing_store(place).verify()


def prune(place: Place, max_bytes: str, min_age: str | None = None) -> dict[str, Any]:
    """Evict until the rest fits."""
    bound = size_bytes("--max_bytes", max_bytes)
    min_age_s = MIN_AGE_S if min_age is None else seconds("--min_age", min_age)
    store = existing_store(place)
    if isinstance(store, Home):
        return asdict(store.prune(bound, min_age_s=min_age_s))
    if min_age is not None:
        raise UserError("--min_age: only for a store that is a URL; a folder's locks say what is in use")
    return asdict(store.prune(bound))


def pin(place: Place, key: str) -> str:
    """Keep an entry whatever is pruned; its whole key."""
    store = existing_store(place)
    key = _whole(store, key)
    store.pin(key)
    return key


def unpin(place: Place, key: str) -> str:
    """Let an entry be pruned again; its whole key."""
    store = existing_store(place)
    key = _whole(store, key)
    store.unpin(key)
    return key


def _whole(store: Store | Home, start: str) -> str:
    """The one key that starts so."""
    found = [key for key in store.known_keys() if key.startswith(start)] if start else []
    if len(found) != 1:
        what = f"{len(found)} entries start so; give more of the key" if found else "no entry starts so"
        raise UserError(f"{start!r}: {what}; `rankforge store list --store_dir {store}` shows them")
    return found[0]
