"""`rankforge keys`: who may use a server."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from builders.errors import UserError
from builders.store.locks import Wait, locked
from cluster.api_keys import made, read_keys, write_keys
from cluster.key_options import AddKeyOptions


def add(options: AddKeyOptions) -> str:
    """A new key, which nothing can show again; the file is made if there is none."""
    path, name = options.keys_file, options.name
    key, record = made(
        name,
        is_admin=options.admin,
        requests_per_minute=options.requests_per_minute,
        tokens_per_minute=options.tokens_per_minute,
        max_concurrent=options.max_concurrent,
    )
    with _changing(path):
        known = read_keys(path) if path.exists() else ()
        if any(one.name == name for one in known):
            raise UserError(f"--name {name}: there is a key of this name; remove it, or choose another")
        write_keys(path, [*known, record])
    return key


def listing(path: Path) -> list[dict[str, Any]]:
    """Everything but the hashes."""
    records = [msgspec.structs.asdict(record) for record in read_keys(path)]
    return [{name: value for name, value in record.items() if name != "sha256"} for record in records]


def remove(path: Path, name: str) -> str:
    """Running servers refuse it within a second; its id."""
    with _changing(path):
        known = read_keys(path)
        gone = [one for one in known if name in (one.name, one.id)]
        if len(gone) != 1:
            raise UserError(f"{name!r}: no key has this name; `rankforge keys list` shows them")
        write_keys(path, [one for one in known if one is not gone[0]])
    return gone[0].id


@contextmanager
def _changing(path: Path) -> Iterator[None]:
    """One at a time: of two that add a key, none is lost."""
    if not path.parent.is_dir():
        raise UserError(f"{path}: its folder does not exist")
    wait = Wait(limit_s=10, announce=lambda line: print(line, file=sys.stderr))
    try:
        with locked(path.with_name(f"{path.name}.lock"), f"{path}", wait):
            yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; choose another folder") from error


def show(keys: list[dict[str, Any]], console: Console) -> None:
    """The same, for people."""
    table = Table(title=f"{len(keys)} keys")
    for name in ("name", "id", "made", "kind", "requests a minute", "tokens a minute", "at once"):
        table.add_column(name)
    for key in keys:
        made_at = time.strftime("%Y-%m-%d %H:%M", time.localtime(key["created_s"]))
        limits = (key["requests_per_minute"], key["tokens_per_minute"], key["max_concurrent"])
        kind = "admin" if key["is_admin"] else "user"
        table.add_row(key["name"], key["id"], made_at, kind, *(str(limit or "any") for limit in limits))
    console.print(table)
