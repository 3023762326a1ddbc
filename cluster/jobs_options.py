"""The options of `rankforge jobs list`, `follow` and `cancel`."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.options import argument, option, same
from cluster.store_options import StoreOptions


@dataclass(frozen=True, kw_only=True)
class JobsOptions:
    """Whose jobs."""

    store_dir: str = same(StoreOptions, "store_dir")
    json: bool = option(False, help="Print JSON.")


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Which job."""

    job: str = argument(help="As `rankforge jobs list` names it.")
    store_dir: str = same(StoreOptions, "store_dir")
    json: bool = option(False, help="Print JSON, a line for all that is new.")
