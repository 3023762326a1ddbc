"""The hashes of a model's files: a note in the store saves reading files that have not changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from builders.assemble import source_files
from builders.checkpoint import Provenance, SourceFile
from builders.errors import ConfigError
from builders.keys import content_key
from builders.plain import from_json
from builders.sources.opened import Opened
from builders.store import Store


@dataclass(frozen=True, kw_only=True)
class _Noted:
    """What is known of a model's files."""

    files: Mapping[str, SourceFile]


def hashed(opened: Opened, source: Provenance, store: Store) -> Provenance:
    """Where a checkpoint comes from, with the hashes of all its files."""
    where = str(Path(source.model).absolute()) if Path(source.model).exists() else source.model
    name = f"hashes-{content_key(model=where)[:16]}"
    known = _noted(store.read_blob(name))
    files = source_files(opened, known)
    if files != known:
        store.write_blob(name, json.dumps(asdict(_Noted(files=files))).encode())
    return replace(source, files=files)


def _noted(data: bytes | None) -> Mapping[str, SourceFile]:
    """A note that cannot be read is none: the files are hashed again."""
    try:
        return from_json(_Noted, json.loads(data or b"")).files
    except (ValueError, RecursionError, ConfigError):
        return {}
