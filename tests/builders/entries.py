"""Small entries for the store's tests."""

from __future__ import annotations

import os
from pathlib import Path

from builders.keys import Recipe
from builders.store import Entry, Store

PAYLOAD = b"weights " * 1000


def recipe(name: str) -> Recipe:
    return Recipe("engine", {"name": name})


def write_payload(folder: Path) -> None:
    (folder / "rank0").mkdir()
    (folder / "rank0" / "program.bin").write_bytes(PAYLOAD)
    (folder / "config.json").write_text("{}")


def never_build(folder: Path) -> None:
    raise AssertionError("built although the entry was there")


def add(store: Store, name: str, last_used_s: int = 0) -> Entry:
    """Build an entry; with a time, pretend that it was last used then."""
    entry = store.get_or_build(recipe(name), write_payload)
    if last_used_s:
        os.utime(store.root / "used" / entry.key, (last_used_s, last_used_s))
    return entry


def scratch(store: Store) -> list[Path]:
    return list((store.root / "scratch").glob("*"))
