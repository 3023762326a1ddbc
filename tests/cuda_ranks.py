"""One checkpoint as two engines: programs interpreted by PyTorch, and fused ones that launch kernels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from builders.checkpoint import rank_tensors, read_manifest
from builders.constants import rank_constants
from builders.cuda.engine import CudaEngine
from builders.cuda.executor import Choices, Context, Executor
from builders.cuda.launch import KERNELS, Launch
from builders.cuda.site import sites_of
from builders.cuda.unit import Target, candidates, new_scratch
from builders.engine import Engine, Piece, Pieces, TorchEngine, interpreted
from builders.export import Graphs, export_rank
from builders.fuse import fused
from builders.kernels.call import Config, Runner
from builders.kernels.linear import ScratchSize
from builders.limits import Limits
from builders.mapping import Mapping, rank_shape
from builders.ops import LayerCache
from builders.program import Program
from builders.sources.hf import open_folder
from tests.convert_tools import convert_opened


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The same rank twice."""

    kernels: Engine
    plain: Engine


def kernel_pair(model: PreTrainedModel, folder: Path, limits: Limits, run: Runner) -> Pair:
    """Both, with caches of their own."""
    model.save_pretrained(folder / "model")
    out = convert_opened(open_folder(folder / "model"), Mapping(), folder / "out")
    manifest = read_manifest(out)
    spec, mapping = manifest.spec, manifest.mapping
    tensors = rank_tensors(out, manifest, 0) | rank_constants(spec, mapping, 0)
    graphs = export_rank(spec, mapping, 0, torch.float32, limits.tokens_per_block)
    shape = rank_shape(spec, mapping, 0)
    blocks = limits.max_batch_size * (limits.max_seq_len // limits.tokens_per_block)
    size = (blocks + 1, limits.tokens_per_block, shape.num_kv_heads, spec.head_dim)
    plain = TorchEngine(pieces(graphs, interpreted_piece), 0, tensors, new_caches(size, len(shape.layers)))
    return Pair(
        plain=plain,
        kernels=with_kernels(graphs, tensors, new_caches(size, len(shape.layers)), limits, run),
    )


def with_kernels(
    graphs: Graphs, tensors: dict[str, Tensor], caches: list[LayerCache], limits: Limits, run: Runner
) -> CudaEngine:
    """Every site with the likeliest of its candidates."""
    programs = [p for p in (graphs.embed, graphs.rotary, *graphs.blocks, graphs.head) if p is not None]
    choices = first_choices([fused(program) for program in programs], limits)
    scratch = new_scratch(ScratchSize(partial=1 << 16, counters=1 << 12), "cpu")
    context = Context(runner=run, launch=Launch(scratch=scratch))

    def piece(program: Program) -> Piece:
        ready = fused(program)
        return Piece(program=ready, runner=Executor(ready, choices, context))

    inner = TorchEngine(pieces(graphs, piece), 0, tensors, caches)
    ids = torch.zeros(limits.max_batch_size, dtype=torch.int64)
    return CudaEngine(inner, context, limits, ids, trash=len(caches[0].k) - 1)


def first_choices(programs: Iterable[Program], limits: Limits) -> Choices:
    """The likeliest candidate of every site, for every number of rows."""
    target = Target(capability=80, device=None)
    found: dict[str, Config] = {}
    for program in programs:
        for site in sites_of(program, KERNELS).values():
            for rows in KERNELS[site.op].buckets(limits):
                found[site.key(rows)] = candidates(site, rows, limits, target)[0]
    return found


def interpreted_piece(program: Program) -> Piece:
    return Piece(program=program, runner=interpreted(program))


def pieces(graphs: Graphs, piece: object) -> Pieces:
    assert callable(piece)
    one = lambda program: None if program is None else piece(program)  # noqa: E731
    return Pieces(
        embed=one(graphs.embed),
        rotary=one(graphs.rotary),
        blocks=tuple(map(piece, graphs.blocks)),
        layers=graphs.layers,
        head=one(graphs.head),
    )


def new_caches(size: tuple[int, ...], layers: int) -> list[LayerCache]:
    return [LayerCache(k=torch.zeros(size), v=torch.zeros(size)) for _ in range(layers)]
