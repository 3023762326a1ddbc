"""A checkpoint of random weights for an engine that has programs only: what is measured depends on no value.

Tensor parallel ranks of a stage have tensors of the same names and shapes, so they share one file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from builders.checkpoint import Manifest
from builders.config_file import to_json
from builders.convert import rank_file_name
from builders.engine_manifest import read_engine
from builders.shard import targets
from builders.tensor_file import Written, write_tensors

DEVIATION = 0.02


def write_weights(programs: Path, folder: Path, device: str) -> Path:
    """The checkpoint's folder; its config.json is written last."""
    manifest = read_engine(programs).checkpoint
    folder.mkdir(exist_ok=True)
    ranks: list[Written] = []
    for rank in range(manifest.mapping.world_size):
        first = rank - manifest.mapping.place(rank).tp
        if first == rank:
            ranks.append(_made_up(manifest, rank, folder, device))
        else:
            ranks.append(_shared(manifest, ranks[first], rank, folder))
    whole = replace(manifest, held=None, random_seed=None, ranks=tuple(ranks))
    (folder / "config.json").write_text(json.dumps(to_json(whole)))
    return folder


def _made_up(manifest: Manifest, rank: int, folder: Path, device: str) -> Written:
    file, dtype = folder / rank_file_name(rank), getattr(torch, manifest.dtype)
    shapes = _shapes(manifest, rank)

    def chunks() -> Iterator[Tensor]:
        for shape in shapes.values():
            yield torch.empty(shape, dtype=dtype, device=device).normal_(std=DEVIATION).cpu()

    file.unlink(missing_ok=True)
    return write_tensors(file, shapes, dtype, chunks())


def _shared(manifest: Manifest, first: Written, rank: int, folder: Path) -> Written:
    """The same file under another rank's name."""
    file, place = folder / rank_file_name(rank), manifest.mapping.place(rank)
    assert _shapes(manifest, rank) == _shapes(manifest, rank - place.tp), "they are of one shape"
    file.unlink(missing_ok=True)
    os.link(folder / first.name, file)
    return replace(first, name=file.name)


def _shapes(manifest: Manifest, rank: int) -> dict[str, tuple[int, ...]]:
    return {target.name: target.shape for target in targets(manifest.spec, manifest.mapping, rank)}
