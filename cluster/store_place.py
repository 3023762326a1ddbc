"""Where a command's store is: a folder, or a URL with a local folder in front."""

from __future__ import annotations

from pathlib import Path

from builders.errors import UserError
from builders.store import Home, Store, StorePlace
from builders.store.urls import is_url

Place = str | Path
"""A folder or a URL."""


def open_store(store_dir: Place | None, store_cache: Path | None, output: Path) -> Store:
    """The store that the options name; its home is refused here if it cannot be reached or written."""
    store = store_place(store_dir, store_cache, output).open()
    if store.home:
        store.home.prepare()
    return store


def store_place(store_dir: Place | None, store_cache: Path | None, output: Path) -> StorePlace:
    """By default, the folder is beside the output, so that what is linked into it takes no space."""
    beside = output.parent / ".rankforge-store"
    if store_dir is not None and is_url(str(store_dir)):
        return StorePlace(folder=store_cache or beside, url=str(store_dir))
    if store_cache is not None:
        raise UserError("--store_cache: only in front of a URL; give one with --store_dir, or leave it out")
    return StorePlace(folder=beside if store_dir is None else Path(store_dir))


def existing_store(store_dir: Place) -> Store | Home:
    """A store to look after; of a URL, its home alone."""
    if is_url(str(store_dir)):
        home = Home(str(store_dir))
        home.require()
        return home
    folder = Path(store_dir)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such store; give the folder that `rankforge build` used")
    return Store(folder)
