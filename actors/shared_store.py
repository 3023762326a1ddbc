"""The store as a worker is told of it: it must be the very one that the plan was made for."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace

from builders.errors import ArtifactError
from builders.store import Store, StorePlace

_IDENTITY = "store-id-"


@dataclass(frozen=True, kw_only=True)
class SharedStore:
    """Plain data that a worker can be sent."""

    place: StorePlace
    identity: str
    """Part of a note's name, which is there wherever the store is seen."""

    @classmethod
    def of(cls, store: Store) -> SharedStore:
        """Give the store an identity, unless it has one."""
        known = store.notes.names(_IDENTITY) or [_IDENTITY + uuid.uuid4().hex]
        store.notes.write(known[0], b"")
        place = replace(store.place, folder=store.place.folder.absolute())
        return cls(place=place, identity=known[0].removeprefix(_IDENTITY))

    def open(self) -> Store:
        """The store, or an error where this machine sees another one or none."""
        store = self.place.open()
        if store.notes.read(_IDENTITY + self.identity) is None:
            raise ArtifactError(
                f"{store.home or store}: the store is not to be seen here; name one with --store_dir that "
                "all nodes see: a folder under one path, or a URL"
            )
        return store
