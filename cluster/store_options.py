"""The options of `rankforge store list`, `verify`, `prune`, `pin` and `unpin`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.options import argument, option

_STORE_DIR = "The store's folder; `rankforge build` keeps one named .rankforge-store beside its engines."


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """Which store."""

    store_dir: Path = option(help=_STORE_DIR)
    json: bool = option(False, help="Print the result as JSON.")


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """Which store, and how large it may stay."""

    store_dir: Path = option(help=_STORE_DIR)
    max_bytes: str = option(help="Evict the least recently used until the rest fits in this: 200GB, 0, ...")
    json: bool = option(False, help="Print the result as JSON.")


@dataclass(frozen=True, kw_only=True)
class PinOptions:
    """Which store, and which of its entries."""

    key: str = argument(help="An entry's key, or as much of it as no other shares.")
    store_dir: Path = option(help=_STORE_DIR)
