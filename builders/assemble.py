"""From rank files to a checkpoint folder, and from a draft to its place: all of it or nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from builders.checkpoint import Manifest, SourceFile, check_file, read_manifest
from builders.errors import ArtifactError
from builders.sources.opened import Opened
from builders.store import disk


def source_files(opened: Opened, known: Mapping[str, SourceFile]) -> dict[str, SourceFile]:
    """The hashes of everything a checkpoint is made from; files that look unchanged are not read again."""
    files = {file.name: file for file in (*opened.weights, *travelling(opened))}
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(files, pool.map(_source_file, files.values(), map(known.get, files)), strict=True))


def travelling(opened: Opened) -> Iterable[Path]:
    """Files that are copied as they are."""
    return (*opened.tokenizer, *([opened.generation] if opened.generation else []))


def _source_file(file: Path, known: SourceFile | None) -> SourceFile:
    stat = file.stat()
    if known and (known.num_bytes, known.modified_ns) == (stat.st_size, stat.st_mtime_ns):
        return known
    return SourceFile(sha256=disk.sha256(file), num_bytes=stat.st_size, modified_ns=stat.st_mtime_ns)


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
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    try:
        return read_manifest(output)
    except ArtifactError as error:
        raise ArtifactError(
            f"{output}: exists and is not a whole checkpoint of ours; choose or remove it"
        ) from error


def is_whole(output: Path, manifest: Manifest) -> bool:
    """Whether every rank file is there with its size."""
    try:
        for written in manifest.ranks:
            check_file(output / written.name, written, verify=False)
    except ArtifactError:
        return False
    return True
