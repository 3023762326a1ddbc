"""The store as a worker is told of it: it must be the very one that the plan was made for."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

from builders.errors import ArtifactError
from builders.store import Store

_IDENTITY = "store-id"


@dataclass(frozen=True, kw_only=True)
class SharedStore:
    """Plain data that a worker can be sent."""

    root: Path
    identity: str

    @classmethod
    def of(cls, store: Store) -> SharedStore:
        """Give the store an identity, unless it has one."""
        if store.read_blob(_IDENTITY) is None:
            store.write_blob(_IDENTITY, uuid.uuid4().hex.encode())
        return cls(root=store.root, identity=_identity(store))

    def open(self) -> Store:
        """The store, or an error where this machine sees another one or none."""
        store = Store(self.root)
        if _identity(store) != self.identity:
            raise ArtifactError(
                f"{self.root}: the store is not to be seen here; keep it where all nodes see it under "
                "one path, and name that with --store_dir"
            )
        return store


def _identity(store: Store) -> str:
    return (store.read_blob(_IDENTITY) or b"").decode(errors="replace")
