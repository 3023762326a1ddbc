"""Loading an engine: programs or a plan, and the weights of one rank."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from builders.checkpoint import rank_tensors
from builders.compiled import CompiledProgram, processor, versions
from builders.constants import rank_constants
from builders.engine import Engine, Piece, Pieces, TorchEngine, interpreted
from builders.engine_manifest import (
    RankPrograms,
    TorchManifest,
    TrtManifest,
    Unit,
    check_unit,
    held_program,
    read_engine,
    unit_folder,
)
from builders.errors import EngineError
from builders.mapping import rank_shape
from builders.ops import LayerCache
from builders.program import Program

PROGRAM, PACKAGE = "program.json", "program.pt2"


def load_engine(folder: Path, rank: int, *, num_blocks: int, device: str | None = None) -> Engine:
    """One rank, with an empty cache of `num_blocks` blocks. Nothing is compiled.

    `device` is which of several CUDA devices; what the engine was built for decides all else.

    Programs and plans are code: their hashes are checked before they are loaded.
    """
    manifest = read_engine(folder)
    number = held_program(folder, manifest, rank)
    if isinstance(manifest, TrtManifest):
        from builders.trt.load import load_plan  # a torch engine takes none of this

        return load_plan(folder, manifest, rank, num_blocks=num_blocks)
    if why := obstacle(manifest):
        raise EngineError(f"{folder}: cannot run here: {why}")
    pieces = _pieces(folder, manifest, manifest.programs[number])
    if manifest.target != "cpu":
        from builders.cuda.load import load_cuda

        return load_cuda(folder, manifest, pieces, rank, num_blocks=num_blocks, device=device or "cuda:0")
    return _load_torch(folder, manifest, pieces, rank, num_blocks)


def obstacle(engine: TorchManifest) -> str | None:
    """Why programs compiled for the CPU do not run here; graphs as they were exported run anywhere."""
    if engine.processor is None:
        return None
    built = {**engine.versions, "processor": engine.processor}
    here = {**versions(), "processor": processor()}
    if built == here:
        return None
    named = [", ".join(f"{name} {value}" for name, value in facts.items()) for facts in (built, here)]
    return f"it was compiled with {named[0]}, and this is {named[1]}; build it again"


def _load_torch(
    folder: Path, manifest: TorchManifest, pieces: Pieces, rank: int, num_blocks: int
) -> TorchEngine:
    checkpoint = manifest.checkpoint
    spec, mapping = checkpoint.spec, checkpoint.mapping
    tensors = {
        **rank_tensors(folder, checkpoint, rank),
        **rank_constants(spec, mapping, rank),
    }
    return TorchEngine(
        pieces,
        rank_shape(spec, mapping, rank).layers.start,
        tensors,
        new_caches(manifest, rank, num_blocks),
    )


def new_caches(
    manifest: TorchManifest, rank: int, num_blocks: int, *, device: str = "cpu"
) -> list[LayerCache]:
    """Empty caches for the layers of a rank."""
    checkpoint = manifest.checkpoint
    held = rank_shape(checkpoint.spec, checkpoint.mapping, rank)
    shape = (num_blocks, manifest.limits.tokens_per_block, held.num_kv_heads, checkpoint.spec.head_dim)
    dtype = getattr(torch, checkpoint.dtype)

    def zeros() -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    try:
        return [LayerCache(k=zeros(), v=zeros()) for _ in held.layers]
    except RuntimeError as error:  # as PyTorch calls what does not fit
        size = 2 * len(held.layers) * math.prod(shape) * dtype.itemsize / 2**30
        raise EngineError(
            f"rank {rank}: a cache of {num_blocks} blocks takes {size:.1f} GiB, more than {device} has; "
            "ask for fewer"
        ) from error


def _pieces(folder: Path, manifest: TorchManifest, programs: RankPrograms) -> Pieces:
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


def read_program(folder: Path, unit: Unit) -> Program:
    """A unit's program, once its files are known to be those that were built."""
    check_unit(folder, unit)
    return Program.from_json(json.loads((unit_folder(folder, unit) / PROGRAM).read_text()))


def _piece(folder: Path, unit: Unit) -> Piece:
    program = read_program(folder, unit)
    if PACKAGE in (written.name for written in unit.files):
        return Piece(program=program, runner=CompiledProgram(program, unit_folder(folder, unit) / PACKAGE))
    return Piece(program=program, runner=interpreted(program))
