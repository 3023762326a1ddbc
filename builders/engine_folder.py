"""An engine on disk: config.json, programs that hold no weights, and every rank's weights beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

from builders.checkpoint import Manifest, rank_tensors
from builders.compiled import CompiledProgram
from builders.config_file import Format, read_config
from builders.constants import rank_constants
from builders.engine import Piece, Pieces, TorchEngine, interpreted
from builders.errors import ArtifactError
from builders.keys import content_key
from builders.limits import Limits
from builders.mapping import rank_shape
from builders.ops import LayerCache
from builders.program import Program
from builders.store import disk
from builders.tensor_file import Written

PROGRAM, PACKAGE = "program.json", "program.pt2"


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One program as it was built: a folder under `programs/`."""

    key: str
    """Of the program and of all else that decided its files."""
    files: tuple[Written, ...]


@dataclass(frozen=True, kw_only=True)
class RankPrograms:
    """Which units make up a rank, by number."""

    embed: int | None
    rotary: int | None
    blocks: tuple[int, ...]
    layers: tuple[int, ...]
    """For every layer, which of the blocks it is."""
    head: int | None


@dataclass(frozen=True, kw_only=True)
class EngineManifest:
    """The content of an engine's config.json."""

    format: ClassVar[Format] = Format(
        name="rankforge-engine", version=1, remedy="make one with `rankforge build`"
    )

    kind: Literal["torch"] = "torch"
    target: Literal["cpu", "cuda"]
    compiled: bool
    limits: Limits
    checkpoint: Manifest
    units: tuple[Unit, ...]
    programs: tuple[RankPrograms, ...]
    ranks: tuple[int | None, ...]
    """For every rank, which of the programs it runs; None for a rank that was not built."""
    versions: Mapping[str, str]
    """Of the libraries that the units were built with."""

    @property
    def key(self) -> str:
        """Equal for engines made of the same parts."""
        data = {**asdict(self), "checkpoint": self.checkpoint.key}
        return content_key(format=[self.format.name, self.format.version], **data)


def read_engine(folder: Path) -> EngineManifest:
    """An engine's manifest, once it is known to be ours."""
    return read_config(EngineManifest, folder)


def load_engine(folder: Path, rank: int, *, num_blocks: int) -> TorchEngine:
    """One rank, with an empty cache of `num_blocks` blocks. Nothing is compiled.

    A compiled program is code: its hash is checked before it is loaded.
    """
    manifest = read_engine(folder)
    checkpoint = manifest.checkpoint
    programs = _programs_of(folder, manifest, rank)
    spec, mapping = checkpoint.spec, checkpoint.mapping
    tensors = {
        **rank_tensors(folder, checkpoint, rank),
        **rank_constants(spec, mapping, rank),
    }
    return TorchEngine(
        _pieces(folder, manifest, programs),
        rank_shape(spec, mapping, rank).layers.start,
        tensors,
        new_caches(manifest, rank, num_blocks),
    )


def _programs_of(folder: Path, manifest: EngineManifest, rank: int) -> RankPrograms:
    """What a rank runs, once it is known that the engine holds it."""
    number = manifest.ranks[rank] if 0 <= rank < len(manifest.ranks) else None
    if number is None:
        held = ", ".join(str(rank) for rank, found in enumerate(manifest.ranks) if found is not None)
        raise ArtifactError(
            f"{folder}: does not hold rank {rank} of {len(manifest.ranks)}, only {held}; "
            "build it with other --ranks, or without --ranks for all"
        )
    if manifest.checkpoint.held == ():
        raise ArtifactError(
            f"{folder}: holds programs only (--no_weights); build again from the checkpoint to link weights"
        )
    return manifest.programs[number]


def new_caches(manifest: EngineManifest, rank: int, num_blocks: int) -> list[LayerCache]:
    """Empty caches for the layers of a rank."""
    checkpoint = manifest.checkpoint
    held = rank_shape(checkpoint.spec, checkpoint.mapping, rank)
    shape = (num_blocks, manifest.limits.tokens_per_block, held.num_kv_heads, checkpoint.spec.head_dim)
    dtype = getattr(torch, checkpoint.dtype)
    return [
        LayerCache(k=torch.zeros(shape, dtype=dtype), v=torch.zeros(shape, dtype=dtype)) for _ in held.layers
    ]


def _pieces(folder: Path, manifest: EngineManifest, programs: RankPrograms) -> Pieces:
    def piece(number: int | None) -> Piece | None:
        return None if number is None else _piece(folder, manifest.units[number])

    blocks = tuple(_piece(folder, manifest.units[number]) for number in programs.blocks)
    return Pieces(
        embed=piece(programs.embed),
        rotary=piece(programs.rotary),
        blocks=blocks,
        layers=programs.layers,
        head=piece(programs.head),
    )


def unit_folder(folder: Path, unit: Unit) -> Path:
    """Where a unit's files lie."""
    return folder / "programs" / unit.key[:16]


def read_program(folder: Path, unit: Unit) -> Program:
    """A unit's program, once its files are known to be those that were built."""
    files = unit_folder(folder, unit)
    for written in unit.files:
        check_written(files / written.name, written)
    return Program.from_json(json.loads((files / PROGRAM).read_text()))


def _piece(folder: Path, unit: Unit) -> Piece:
    program = read_program(folder, unit)
    package = unit_folder(folder, unit) / PACKAGE
    if package.is_file():
        return Piece(program=program, runner=CompiledProgram(program, package))
    return Piece(program=program, runner=interpreted(program))


def check_written(file: Path, written: Written) -> None:
    """Refuse a file that is not the one that was built."""
    if not file.is_file() or disk.sha256(file) != written.sha256:
        raise ArtifactError(f"{file}: missing, or not the file that was built; build the engine again")
