"""From rank files to a checkpoint folder, and from a draft to its place: all of it or nothing."""

from __future__ import annotations

import filecmp
import json
import shutil
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from builders.checkpoint import Manifest, SourceFile, check_file, read_manifest
from builders.errors import ArtifactError, SourceError
from builders.sources.opened import Identity, Opened
from builders.store import disk


def source_files(opened: Opened, known: Mapping[str, SourceFile]) -> dict[str, SourceFile]:
    """The hashes of everything a checkpoint is made from, by path below the source's root.

    Files that have not been touched since they were hashed are not read again.
    """
    files = _named(opened)
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(files, pool.map(_source_file, files.values(), map(known.get, files)), strict=True))


def _named(opened: Opened) -> dict[str, Path]:
    """Files by their path in the source; what was unpacked from an archive lies elsewhere, under its name."""
    files, root = (*opened.weights, *travelling(opened)), opened.root
    names = [str(file.relative_to(root)) if file.is_relative_to(root) else file.name for file in files]
    assert len(set(names)) == len(names), f"{sorted(names)}: every file must have a name of its own"
    return dict(zip(names, files, strict=True))


def check_unchanged(opened: Opened) -> None:
    """Refuse a source that was written to since it was opened: what was read of it may be of two minds."""
    for name, file in _named(opened).items():
        if file.is_relative_to(opened.root) and identity(file) != opened.before.get(name):
            raise SourceError(f"{file}: changed while it was read; run again")


def weight_files(opened: Opened) -> dict[Path, Identity]:
    """The files that weights are read from, as they were before the source was opened."""
    names = {file: name for name, file in _named(opened).items()}
    known = {file: opened.before.get(names[file]) for file in opened.weights}
    return {file: before or identity(file) for file, before in known.items()}


def identities(source: Path) -> dict[str, Identity]:
    """Of the files of a source, by their names: taken before it is opened, asked after it was read."""
    if source.is_file():
        return {source.name: identity(source)}
    files = (file for pattern in ("*", "*/*") for file in source.glob(pattern) if file.is_file())
    return {str(file.relative_to(source)): identity(file) for file in files}


def travelling(opened: Opened) -> Iterable[Path]:
    """Files that are copied as they are."""
    return (*opened.tokenizer, *([opened.generation] if opened.generation else []))


_TICK_S = 0.02
"""Twice the time in which a file system may give two changes the same time."""


def _source_file(file: Path, known: SourceFile | None) -> SourceFile:
    before = identity(file)
    if known and _identity_of(known) == before:
        return known
    if time.time() - before.changed_ns / 1e9 < _TICK_S:
        time.sleep(_TICK_S)  # whatever is written from now on has a later time
    digest = disk.sha256(file)
    if identity(file) != before:
        raise SourceError(f"{file}: changed while it was read; run again")
    return SourceFile(
        sha256=digest, num_bytes=before.num_bytes, inode=before.inode, changed_ns=before.changed_ns
    )


def identity(file: Path) -> Identity:
    """Of a file as it is now."""
    stat = file.stat()
    return Identity(stat.st_size, stat.st_ino, stat.st_ctime_ns)


def _identity_of(known: SourceFile) -> Identity:
    return Identity(known.num_bytes, known.inode, known.changed_ns)


def assemble(draft: Path, manifest: Manifest, opened: Opened) -> None:
    """Complete a draft that holds the rank files."""
    if opened.tokenizer:
        (draft / "tokenizer").mkdir()
        for file in opened.tokenizer:
            shutil.copyfile(file, draft / "tokenizer" / file.name)
    if opened.generation:
        shutil.copyfile(opened.generation, draft / "generation_config.json")
    (draft / "config.json").write_text(json.dumps(manifest.to_json(), indent=2) + "\n")
    for name, _stat in disk.walk(draft):
        disk.sync(draft / name)
    disk.sync_folders(draft)


def existing(output: Path) -> Manifest | None:
    """The checkpoint that is in the way, None where there is nothing; a foreign folder is never touched."""
    if disk.holds_nothing(output):
        return None
    try:
        return read_manifest(output)
    except ArtifactError as error:
        raise ArtifactError(
            f"{output}: exists and is not a whole checkpoint of ours; choose or remove it"
        ) from error


def is_whole(output: Path, manifest: Manifest, opened: Opened, *, verify: bool = False) -> bool:
    """Whether every rank file is there with its size, or verified, and all that travels with its content."""
    copies = [(file, output / "tokenizer" / file.name) for file in opened.tokenizer]
    if opened.generation:
        copies.append((opened.generation, output / "generation_config.json"))
    try:
        for written in manifest.ranks:
            check_file(output / written.name, written, verify=verify)
    except ArtifactError:
        return False
    return all(copy.is_file() and filecmp.cmp(file, copy, shallow=False) for file, copy in copies)
