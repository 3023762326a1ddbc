"""Where artifacts live: immutable entries in a local folder, found by content key."""

from builders.store.local import Draft, Store
from builders.store.manifest import FileRecord, Manifest
from builders.store.shelf import Entry
from builders.store.upkeep import Listed, Pruned

__all__ = ["Draft", "Entry", "FileRecord", "Listed", "Manifest", "Pruned", "Store"]
