"""Loading a rank onto a CUDA device: machine code and weights, and no compiler."""

from __future__ import annotations

from collections.abc import Collection
from functools import reduce
from operator import or_
from pathlib import Path

import torch
from torch import Tensor

from builders.checkpoint import rank_tensors
from builders.constants import rank_constants
from builders.cuda.choosing import DRAW, LIKELIEST
from builders.cuda.engine import CudaEngine
from builders.cuda.executor import Choices, Context, Executor
from builders.cuda.launch import Launch
from builders.cuda.target import obstacle
from builders.cuda.unit import Choice, new_scratch, read_choice
from builders.cuda.weights import read_to_device
from builders.engine import Piece, Pieces, TorchEngine
from builders.engine_folder import new_caches
from builders.engine_manifest import TorchManifest, check_unit, unit_folder
from builders.errors import ArtifactError, EngineError
from builders.kernels.driver import Kernels
from builders.kernels.linear import ScratchSize
from builders.kernels.parameters import takes
from builders.mapping import rank_shape
from builders.program import Program


def load_cuda(
    folder: Path, manifest: TorchManifest, pieces: Pieces, rank: int, *, num_blocks: int, device: str
) -> CudaEngine:
    """One rank with an empty cache; `pieces` hold its programs, which are given kernels here."""
    if why := obstacle(manifest.target):
        raise EngineError(f"{folder}: cannot run here: {why}")
    found = choices_of(folder, manifest)  # before weights are read for nothing
    checkpoint, limits = manifest.checkpoint, manifest.limits
    shape = rank_shape(checkpoint.spec, checkpoint.mapping, rank)
    torch.cuda.set_device(device)
    weights = rank_tensors(folder, checkpoint, rank, read=lambda file: read_to_device(file, device))
    constants = rank_constants(checkpoint.spec, checkpoint.mapping, rank)
    tensors = {name: value.to(device) for name, value in (weights | constants).items()}
    caches = new_caches(manifest, rank, num_blocks + 1, device=device)
    context = _context(found.values(), device)
    ready = _with_kernels(pieces, {key: choice.config for key, choice in found.items()}, context)
    x = _input(manifest, first=shape.first, device=device)
    return CudaEngine(
        TorchEngine(ready, shape.layers.start, tensors, caches),
        context,
        limits,
        x,
        trash=num_blocks,
        sequences=limits.max_sequences * checkpoint.mapping.pp_size,
        draws=DRAW in found,
        finding=found[LIKELIEST].config if LIKELIEST in found else None,
    )


def choices_of(folder: Path, manifest: TorchManifest) -> dict[str, Choice]:
    """Kernels by the key of their site, once their files are known to be those that were built."""
    for unit in manifest.kernels:
        check_unit(folder, unit)
    choices = [read_choice(unit_folder(folder, unit)) for unit in manifest.kernels]
    for choice in choices:
        _check_kernels(folder, choice)
    return {choice.site: choice for choice in choices}


def _check_kernels(folder: Path, choice: Choice) -> None:
    """Refuse those of another version, before a step needs them."""
    for compiled in choice.compiled:
        if not takes(compiled.source):
            raise ArtifactError(
                f"{folder}: its kernel {compiled.source.kernel} is of another version of rankforge and takes "
                "other arguments; use the rankforge that made the engine, or build it again"
            )


def _context(choices: Collection[Choice], device: str) -> Context:
    size = reduce(or_, (choice.scratch for choice in choices), ScratchSize())
    kernels = Kernels(kernel for choice in choices for kernel in choice.compiled)
    launch = Launch(scratch=new_scratch(size, device))
    return Context(runner=kernels.run, launch=launch, repeater=kernels.repeat)


def _with_kernels(pieces: Pieces, choices: Choices, context: Context) -> Pieces:
    def piece(program: Program) -> Piece:
        return Piece(program=program, runner=Executor(program, choices, context))

    def optional(found: Piece | None) -> Piece | None:
        return piece(found.program) if found else None

    return Pieces(
        embed=optional(pieces.embed),
        rotary=optional(pieces.rotary),
        blocks=tuple(piece(block.program) for block in pieces.blocks),
        layers=pieces.layers,
        head=optional(pieces.head),
    )


def _input(manifest: TorchManifest, *, first: bool, device: str) -> Tensor:
    """Token ids, or the hidden states of the stage before."""
    most = manifest.limits.max_sequences
    if first:
        return torch.zeros(most, dtype=torch.int64, device=device)
    checkpoint = manifest.checkpoint
    dtype = getattr(torch, checkpoint.dtype)
    return torch.zeros(most, checkpoint.spec.hidden_size, dtype=dtype, device=device)
