"""Homes for the store's tests: folders and memory, counted, disturbed, and with several machines in front."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
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


Around = Callable[[str, str, Callable[[], Any]], Any]
"""Does an operation of the storage, given its name, what it is done to, and how."""


class Interrupted:
    """A file system that does its operations by way of somebody else."""

    def __init__(self, file_system: Any, around: Around) -> None:
        self._fs, self._around = file_system, around

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._fs, name)
        if name not in OPERATIONS:
            return found

        def call(*args: Any, **settings: Any) -> Any:
            path = str(args[1] if name == "put_file" else args[0])
            return self._around(name, path, partial(found, *args, **settings))

        return call


def interrupt(home: Home, around: Around) -> None:
    """From here on."""
    home.objects._fs = Interrupted(home.objects._fs, around)


@contextmanager
def disturbed(home: Home, before: Callable[[str, str], None]) -> Iterator[Home]:
    """The same home; before every operation of the storage, something happens."""

    def around(name: str, path: str, operation: Callable[[], Any]) -> Any:
        before(name, path)
        return operation()

    plain = home.objects._fs
    interrupt(home, around)
    try:
        yield home
    finally:
        home.objects._fs = plain


def at(step: int, calls: list[int], act: Callable[[], object]) -> Callable[[str, str], None]:
    """Does something before the operation of that number, and counts them."""

    def before(_what: str, _path: str) -> None:
        calls[0] += 1
        if calls[0] == step + 1:
            act()

    return before
