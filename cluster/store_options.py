"""The options of `rankforge store list`, `verify`, `prune`, `pin` and `unpin`."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.options import argument, option

_STORE_DIR = (
    "The store's folder or URL; without one, `rankforge build` keeps a folder named .rankforge-store "
    "beside its engines."
)


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """Which store."""

    store_dir: str = option(help=_STORE_DIR)
    json: bool = option(False, help="Print the result as JSON.")


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """Which store, and how large it may stay."""

    store_dir: str = option(help=_STORE_DIR)
    max_bytes: str = option(help="Evict the least recently used until the rest fits in this: 200GB, 0, ...")
    min_age: str | None = option(
        None,
        help="Of a URL: what was written or used within this stays, such as 12h or 0, and unfinished "
        "uploads that are older go; 1d by default.",
    )
    json: bool = option(False, help="Print the result as JSON.")


@dataclass(frozen=True, kw_only=True)
class PinOptions:
    """Which store, and which of its entries."""

    key: str = argument(help="An entry's key, or as much of it as no other shares.")
    store_dir: str = option(help=_STORE_DIR)
