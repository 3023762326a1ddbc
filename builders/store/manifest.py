"""What an entry holds, and every reason to refuse one before its files are read."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from builders.errors import ArtifactError
from builders.keys import Json, Recipe, plain_object
from builders.store import disk

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 << 20
_FORMAT = "rankforge-store-entry"
_SCHEMA = 1
_SHA256 = re.compile("[0-9a-f]{64}")
_HASHING_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One file of an entry."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The description that travels with an entry and proves what it is."""

    recipe: Recipe
    files: Mapping[str, FileRecord]
    created: str
    """ISO 8601, UTC."""
    metadata: Mapping[str, Json] = field(default_factory=dict)
    """What does not change the key: build seconds, the machine that built it."""

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(record.size_bytes for record in self.files.values())

    def to_bytes(self) -> bytes:
        """JSON, the inverse of `parse`."""
        data = {
            "format": _FORMAT,
            "schema": _SCHEMA,
            "kind": self.recipe.kind,
            "key": self.recipe.key,
            "inputs": self.recipe.inputs,
            "files": {name: asdict(record) for name, record in self.files.items()},
            "created": self.created,
            "metadata": self.metadata,
        }
        return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()


_FIELDS = {"format", "schema", "kind", "key", "inputs", "files", "created", "metadata"}


def parse(data: bytes, key: str) -> Manifest:
    """The manifest of entry `key`, or an ArtifactError that says why it is not one."""
    raw = _object(data)
    if raw.get("format") != _FORMAT:
        raise ArtifactError(f"{MANIFEST} is foreign: its format is not {_FORMAT!r}")
    if type(raw.get("schema")) is not int or raw["schema"] != _SCHEMA:
        raise ArtifactError(f"{MANIFEST} has schema {raw.get('schema')!r}; only {_SCHEMA} is read")
    if raw.keys() != _FIELDS:
        raise ArtifactError(f"{MANIFEST}: fields {sorted(raw.keys() ^ _FIELDS)} missing or unknown")
    if not (isinstance(raw["files"], dict) and isinstance(raw["metadata"], dict)):
        raise ArtifactError(f"{MANIFEST}: files and metadata must be objects")
    recipe = Recipe(raw["kind"], raw["inputs"])
    # The key is recomputed from the inputs, so an entry moved under another key is found out.
    if not raw["key"] == recipe.key == key:
        raise ArtifactError(f"{MANIFEST} belongs to another entry: its inputs have key {recipe.key}")
    files = {disk.check_name(name): _record(name, item) for name, item in raw["files"].items()}
    return Manifest(recipe=recipe, files=files, created=str(raw["created"]), metadata=raw["metadata"])


def _object(data: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict):
        raise ArtifactError(f"{MANIFEST} is not a JSON object")
    return raw


def _record(name: str, item: Any) -> FileRecord:
    size, digest = (item.get("size_bytes"), item.get("sha256")) if isinstance(item, dict) else (0, 0)
    if type(size) is int and size >= 0 and isinstance(digest, str) and _SHA256.fullmatch(digest):
        return FileRecord(size_bytes=size, sha256=digest)
    raise ArtifactError(f"{MANIFEST}: record of {name!r} must have size_bytes and sha256")


def describe(folder: Path, recipe: Recipe, metadata: Mapping[str, Json]) -> Manifest:
    """Hash a finished draft and force its files to the device."""
    names = [_draft_file(name, found.st_mode, found.st_nlink) for name, found in disk.walk(folder)]
    if not names:
        raise ArtifactError(f"{recipe.kind} {recipe.key}: the build wrote no file; nothing to publish")
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        records = list(pool.map(_seal, (folder / name for name in names)))
    created = datetime.now(UTC).isoformat(timespec="microseconds")
    files = dict(zip(names, records, strict=True))
    notes = plain_object(metadata, "metadata")
    return Manifest(recipe=recipe, files=files, created=created, metadata=notes)


def _draft_file(name: str, mode: int, links: int) -> str:
    disk.check_name(name)
    if name == MANIFEST:
        raise ArtifactError(f"{name!r}: the store writes this file itself; choose another name")
    if not stat.S_ISREG(mode) or links > 1:
        raise ArtifactError(f"{name!r}: must be a plain file, not a link or device; copy its bytes")
    return name


def _seal(path: Path) -> FileRecord:
    path.chmod(path.stat().st_mode & ~0o222)
    disk.sync(path)
    return FileRecord(size_bytes=path.stat().st_size, sha256=disk.sha256(path))


def problems(folder: Path, manifest: Manifest, *, hashes: bool) -> list[str]:
    """Every way in which the files differ from the manifest; empty when there is none."""
    found = {name: item for name, item in disk.walk(folder) if name != MANIFEST}
    wrong = [f"{name!r} is missing" for name in sorted(manifest.files.keys() - found.keys())]
    wrong += [f"{name!r} is extra" for name in sorted(found.keys() - manifest.files.keys())]
    present = {name: item for name, item in manifest.files.items() if name in found}
    for name, record in present.items():
        wrong += _shape_problems(name, record, found[name].st_mode, found[name].st_size)
    return wrong or (_hash_problems(folder, manifest) if hashes else [])


def _shape_problems(name: str, record: FileRecord, mode: int, size_bytes: int) -> Iterator[str]:
    if not stat.S_ISREG(mode):
        yield f"{name!r} is not a plain file"
    elif size_bytes != record.size_bytes:
        yield f"{name!r} has {size_bytes:,} bytes, not {record.size_bytes:,}"


def _hash_problems(folder: Path, manifest: Manifest) -> list[str]:
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        hashes = list(pool.map(disk.sha256, (folder / name for name in manifest.files)))
    return [
        f"{name!r} does not have its sha256 {record.sha256[:12]}"
        for (name, record), digest in zip(manifest.files.items(), hashes, strict=True)
        if digest != record.sha256
    ]
