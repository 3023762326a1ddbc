"""Where artifacts live: immutable entries found by content key, in a folder or in a home that many share."""

from builders.store.draft import Draft
from builders.store.home import Home
from builders.store.local import Store
from builders.store.manifest import FileRecord, Manifest
from builders.store.notes import Notes
from builders.store.place import StorePlace
from builders.store.shelf import Entry
from builders.store.upkeep import Listed, Pruned

__all__ = [
    "Draft",
    "Entry",
    "FileRecord",
    "Home",
    "Listed",
    "Manifest",
    "Notes",
    "Pruned",
    "Store",
    "StorePlace",
]
