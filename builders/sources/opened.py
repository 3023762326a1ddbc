"""A source checkpoint, understood but not yet read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from builders.errors import SourceError
from builders.families.view import Family
from builders.mapping import Mapping as RankMapping
from builders.sources.stored import Index
from builders.spec import ModelSpec


class Identity(NamedTuple):
    """Changes whenever a file's content does: no program can set the time of its last change."""

    num_bytes: int
    inode: int
    changed_ns: int


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What every kind of source comes down to."""

    family: Family
    spec: ModelSpec
    index: Index
    """Empty where only a configuration was asked for."""
    root: Path = Path()
    """The folder that the files are named from."""
    before: Mapping[str, Identity] = field(default_factory=dict)
    """Of its files, by name, from before it was opened."""
    weights: Sequence[Path] = ()
    """The files that decide the weights; their hashes go into the content key."""
    tokenizer: Sequence[Path] = ()
    """Files to copy into `tokenizer/`."""
    generation: Path | None = None
    """generation_config.json, where the source has one."""
    dtype: str | None = None
    """What the configuration says; only asked where there are no weights."""
    layout: RankMapping | None = None
    """The ranks that the configuration was written for, where it says so."""


def open_source(
    path: Path, *, scratch: Path, ignored: Collection[str] = (), config_only: bool = False
) -> Opened:
    """Recognize and open a Hugging Face folder, a Meta folder, a NeMo archive, or a lone config.json.

    `scratch` takes what must be unpacked to be mapped; it must outlive the conversion.
    """
    opened = _open(path, scratch, ignored, config_only)
    return replace(opened, root=path if path.is_dir() else path.parent)


def _open(path: Path, scratch: Path, ignored: Collection[str], config_only: bool) -> Opened:
    from builders.sources import hf, meta, nemo

    if path.suffix == ".nemo" or (path / "model_config.yaml").is_file():
        return nemo.open_archive(path, scratch=scratch, ignored=ignored, config_only=config_only)
    if path.is_file():
        if not config_only:
            raise SourceError(f"{path}: a configuration alone has no weights; add --load_format random")
        return hf.open_config(path, ignored=ignored)
    if (path / "params.json").is_file() and not (path / "config.json").is_file():
        return meta.open_folder(path, ignored=ignored, config_only=config_only)
    if not path.is_dir():
        raise SourceError(f"{path}: no such folder or file")
    return hf.open_folder(path, ignored=ignored, config_only=config_only)
