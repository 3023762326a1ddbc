"""`rankforge store`: what the store holds, whether it is sound, and making room."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from builders.errors import ArtifactError, UserError
from builders.store import Store
from cluster.inspect import size
from cluster.values import size_bytes


def listing(folder: Path) -> list[dict[str, Any]]:
    """Every entry, the one used last first."""
    entries = sorted(_open(folder).listing(), key=lambda entry: -entry.last_used_s)
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


def verify(folder: Path) -> dict[str, list[str]]:
    """What is wrong with every entry after hashing all of it; an empty list is sound."""
    return _open(folder).verify()


def prune(folder: Path, max_bytes: str) -> dict[str, Any]:
    """Evict until the rest fits."""
    bound = size_bytes("--max_bytes", max_bytes)
    return asdict(_open(folder).prune(bound))


def pin(folder: Path, key: str) -> str:
    """Keep an entry whatever is pruned; its whole key."""
    store = _open(folder)
    key = _whole(store, key)
    store.pin(key)
    return key


def unpin(folder: Path, key: str) -> str:
    """Let an entry be pruned again; its whole key."""
    store = _open(folder)
    key = _whole(store, key)
    store.unpin(key)
    return key


def _whole(store: Store, start: str) -> str:
    """The one key that starts so."""
    found = [entry.key for entry in store.listing() if entry.key.startswith(start)] if start else []
    if len(found) != 1:
        what = f"{len(found)} entries start so; give more of the key" if found else "no entry starts so"
        raise UserError(f"{start!r}: {what}; `rankforge store list --store_dir {store.root}` shows them")
    return found[0]


def _open(folder: Path) -> Store:
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such store; give the folder that `rankforge build` used")
    return Store(folder)
