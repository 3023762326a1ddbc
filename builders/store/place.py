"""Where a store is, for whoever is to open it elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from builders.store.home import Home

if TYPE_CHECKING:
    from builders.store.local import Store


@dataclass(frozen=True, kw_only=True)
class StorePlace:
    """Where a store is: plain data that a worker can be sent."""

    folder: Path
    url: str | None = field(default=None, repr=False)
    """Of the home that the folder is a cache of; it may hold a password."""

    def open(self) -> Store:
        """The store; its home is not asked anything yet."""
        from builders.store.local import Store  # which says where it is

        return Store(self.folder, home=Home(self.url) if self.url else None)
