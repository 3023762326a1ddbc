"""One checkpoint as several engines: interpreted by PyTorch, and fused with kernels launched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from builders.checkpoint import rank_tensors, read_manifest
from builders.constants import rank_constants
from builders.cuda.engine import CudaEngine
from builders.cuda.executor import Choices, Context, Executor
from builders.cuda.launch import Launch
from builders.cuda.site import sites_of
from builders.cuda.table import KERNELS
from builders.cuda.target import Target
from builders.cuda.unit import candidates, new_scratch
from builders.decoder import Decoder
from builders.engine import Engine, Piece, Pieces, TorchEngine, interpreted
from builders.export import Graphs, export_rank
from builders.fuse import fused, narrow_logits
from builders.kernels.call import Arg, Call, Config, Move, Repeat, Repeater, Runner
from builders.kernels.linear import ScratchSize
from builders.limits import Limits
from builders.mapping import Mapping as Layout
from builders.mapping import rank_shape
from builders.ops import LayerCache, Step
from builders.program import Program
from builders.sources.hf import open_folder
from builders.spec import ModelSpec
from tests.convert_tools import convert_opened
from tests.oracle import randomize


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The same rank three times."""

    kernels: CudaEngine
    plain: Engine
    """In float32, whatever the weights are in."""
    rounded: Engine
    """As `plain`, but in the dtype of the weights throughout."""


@dataclass(frozen=True, kw_only=True)
class On:
    """Where the kernels run."""

    run: Runner
    device: str = "cpu"
    dtype: torch.dtype = torch.float32


def kernel_pair(
    model: PreTrainedModel, folder: Path, limits: Limits, on: On, *, sequences: int | None = None
) -> Pair:
    """A checkpoint's rank as `pair_of` has it."""
    model.save_pretrained(folder / "model")
    out = convert_opened(open_folder(folder / "model"), Layout(), folder / "out")
    manifest = read_manifest(out)
    return pair_of(manifest.spec, rank_tensors(out, manifest, 0), limits, on, sequences=sequences)


def made_up(spec: ModelSpec) -> dict[str, Tensor]:
    """Weights of a model that no checkpoint has."""
    decoder = Decoder(spec, Layout(), 0)
    randomize(decoder)
    return {name: weight.detach() for name, weight in decoder.named_parameters()}


def pair_of(
    spec: ModelSpec, tensors: dict[str, Tensor], limits: Limits, on: On, *, sequences: int | None = None
) -> Pair:
    """All with caches of their own; the plain one computes in float32 with the weights of the first."""
    mapping = Layout()
    weights = {name: weight.to(on.dtype) for name, weight in tensors.items()}
    constants, shape = rank_constants(spec, mapping, 0), rank_shape(spec, mapping, 0)
    blocks = limits.max_batch_size * (limits.max_seq_len // limits.tokens_per_block)
    size = (blocks + 1, limits.tokens_per_block, shape.num_kv_heads, spec.head_dim)
    wide = {name: weight.float() for name, weight in weights.items()} | constants
    there = {name: tensor.to(on.device) for name, tensor in (weights | constants).items()}

    def graphs(dtype: torch.dtype) -> Graphs:
        return export_rank(spec, mapping, 0, dtype, limits.tokens_per_block)

    def caches(dtype: torch.dtype, device: str) -> list[LayerCache]:
        return new_caches(size, len(shape.layers), dtype, device)

    def by_pytorch(tensors: dict[str, Tensor], dtype: torch.dtype) -> TorchEngine:
        return TorchEngine(pieces(graphs(dtype), interpreted_piece), 0, tensors, caches(dtype, "cpu"))

    return Pair(
        plain=by_pytorch(wide, torch.float32),
        rounded=by_pytorch(weights | constants, on.dtype),
        kernels=with_kernels(graphs(on.dtype), there, caches(on.dtype, on.device), limits, on, sequences),
    )


def with_kernels(
    graphs: Graphs,
    tensors: dict[str, Tensor],
    caches: list[LayerCache],
    limits: Limits,
    on: On,
    sequences: int | None,
) -> CudaEngine:
    """Every site with the likeliest of its candidates."""
    choices = first_choices(graphs, limits)
    scratch = new_scratch(ScratchSize(partial=1 << 16, counters=1 << 12), on.device)
    context = Context(runner=on.run, launch=Launch(scratch=scratch), repeater=repeating(on.run))

    def piece(program: Program) -> Piece:
        ready = narrow_logits(fused(program))
        return Piece(program=ready, runner=Executor(ready, choices, context))

    inner = TorchEngine(pieces(graphs, piece), 0, tensors, caches)
    ids = torch.zeros(limits.max_sequences, dtype=torch.int64, device=on.device)
    return CudaEngine(inner, context, limits, ids, trash=len(caches[0].k) - 1, sequences=sequences)


def repeating(run: Runner) -> Repeater:
    """Launches with other tensors, as the driver repeats them."""

    def repeater(call: Call, moves: Sequence[Move]) -> Repeat:
        def again(values: Mapping[str, Tensor]) -> None:
            args = list(call.args)
            for move in moves:
                args[move.arg] = _elsewhere(call.args[move.arg], values[move.value], move.offset)
            run([replace(call, args=tuple(args))])

        return again

    return repeater


def _elsewhere(x: Arg, base: Tensor, offset: int) -> Tensor:
    """A tensor of the same form, so many bytes from another one's first."""
    assert isinstance(x, Tensor)
    first = (base.storage_offset() * base.itemsize + offset) // x.itemsize
    empty = torch.empty(0, dtype=x.dtype, device=x.device)
    return empty.set_(base.untyped_storage(), first, x.shape, x.stride())  # type: ignore[call-overload, no-any-return]


def fused_programs(graphs: Graphs) -> list[Program]:
    programs = (graphs.embed, graphs.rotary, *graphs.blocks, graphs.head)
    return [fused(program) for program in programs if program is not None]


def first_choices(graphs: Graphs, limits: Limits) -> Choices:
    """The likeliest candidate of every site, for every number of rows."""
    target = Target(capability=80, device=None)
    found: dict[str, Config] = {}
    for program in fused_programs(graphs):
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


def new_caches(size: tuple[int, ...], layers: int, dtype: torch.dtype, device: str) -> list[LayerCache]:
    zeros = torch.zeros(size, dtype=dtype, device=device)
    return [LayerCache(k=zeros.clone(), v=zeros.clone()) for _ in range(layers)]


def prompts(lengths: list[int], limits: Limits) -> Step:
    """Whole prompts of these lengths, the last token of each wanted; blocks of sequences interleave."""
    total = torch.tensor(lengths)
    batch, blocks = len(lengths), limits.max_seq_len // limits.tokens_per_block
    return Step(
        positions=torch.cat([torch.arange(length) for length in lengths]),
        sequences=torch.arange(batch).repeat_interleave(total),
        lengths=total,
        block_table=torch.arange(batch * blocks).view(blocks, batch).t().contiguous(),
        wanted=total.cumsum(0) - 1,
    )


def following(step: Step) -> Step:
    """One more token of each."""
    return further(step, [1] * len(step.lengths))


def further(step: Step, counts: list[int]) -> Step:
    """So many more tokens of each, the last of them wanted."""
    total = torch.tensor(counts)
    return Step(
        positions=torch.cat(
            [first + torch.arange(count) for first, count in zip(step.lengths, counts, strict=True)]
        ),
        sequences=torch.arange(len(counts)).repeat_interleave(total),
        lengths=step.lengths + total,
        block_table=step.block_table,
        wanted=total.cumsum(0) - 1,
    )


def of_rows(step: Step, rows: Tensor, table: Tensor) -> Step:
    """The same step, its sequences in these rows of a table that a device keeps."""
    return replace(step, sequences=rows[step.sequences], block_table=table)
