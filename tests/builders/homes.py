"""Homes for the store's tests: folders and memory, counted, disturbed, and with several machines in front."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


from builders.keys import Recipe
from builders.store import Home, Store
from tests.builders.entries import write_payload

OPERATIONS = ("cat_file", "pipe_file", "put_file", "rm_file", "ls", "find", "makedirs")


def memory_url() -> str:
    return f"memory://homes/{uuid.uuid4().hex}"


def new_home(kind: str, folder: Path) -> Home:
    home = Home(memory_url() if kind == "memory" else f"file://{folder / 'home'}")
    home.prepare()
    return home


def machine(home: Home, folder: Path) -> Store:
    """Another machine's store: a cache of its own, and a connection of its own."""
    return Store(folder, home=Home(home.url.whole))


def objects(home: Home, start: str = "") -> set[str]:
    """The names of all objects."""
    return {name for name in home.objects.listing() if name.startswith(start)}


def build(store: Store, name: str = "a") -> str:
    return store.get_or_build(Recipe("engine", {"name": name}), write_payload).key


class Interrupted:
    """A file system of which every operation can be made to fail, or to do something else first."""

    def __init__(self, file_system: Any, before: Callable[[str, str], None]) -> None:
        self._fs, self._before = file_system, before

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._fs, name)
        if name not in OPERATIONS:
            return found

        def call(*args: Any, **settings: Any) -> Any:
            self._before(name, str(args[-1] if name == "put_file" else args[0]))
            return found(*args, **settings)

        return call


@contextmanager
def disturbed(home: Home, before: Callable[[str, str], None]) -> Iterator[Home]:
    """The same home; before every operation of the storage, something happens."""
    plain = home.objects._fs
    home.objects._fs = Interrupted(plain, before)
    try:
        yield home
    finally:
        home.objects._fs = plain


