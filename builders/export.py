"""A rank's decoder as exported graphs: one for what comes before the layers, one a distinct layer,
one for what comes after. Every engine is made from these and from nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_flatten

from builders.decoder import Decoder, embedded, logits
from builders.mapping import Mapping
from builders.ops import LayerCache, Step
from builders.parallel import parallelize
from builders.program import OPERATORS, Program, operator_name, program_of
from builders.spec import ModelSpec

TOKENS, BATCH, TABLE, BLOCKS, WANTED = (
    Dim(name) for name in ("tokens", "batch", "table", "blocks", "wanted")
)


class UnknownOperator(Exception):
    """A graph holds an operator that no engine knows."""


@dataclass(frozen=True, kw_only=True)
class Graphs:
    """The exported pieces of one rank. Layers of equal structure share a program."""

    embed: Program | None
    rotary: Program | None
    blocks: tuple[Program, ...]
    """One a distinct structure."""
    layers: tuple[int, ...]
    """For every layer of the rank, which of the blocks it is."""
    head: Program | None


def export_rank(
    spec: ModelSpec, mapping: Mapping, rank: int, dtype: torch.dtype, tokens_per_block: int = 32
) -> Graphs:
    """Export every piece of a rank; no weights are made, whatever the model's size."""
    with FakeTensorMode():
        decoder = Decoder(spec, mapping, rank).eval()
        _set_dtype(decoder, dtype)
        parallelize(decoder, mapping, mapping.place(rank))
        return _export_pieces(decoder, tokens_per_block)


def _set_dtype(decoder: Decoder, dtype: torch.dtype) -> None:
    """Of the weights alone: constants stay as they are."""
    for module in decoder.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(weight.shape, dtype=dtype), requires_grad=False))


def _export_pieces(decoder: Decoder, tokens_per_block: int) -> Graphs:
    blocks = decoder.blocks
    distinct = range(len(blocks)) if decoder.spec.scale_by_layer else range(1)
    return Graphs(
        embed=_export(_Embed(decoder), _embed_inputs()) if decoder.shape.first else None,
        rotary=_export(decoder.rotary, _rotary_inputs()) if decoder.rotary else None,
        blocks=tuple(_export(blocks[index], _block_inputs(decoder, tokens_per_block)) for index in distinct),
        layers=tuple(min(index, distinct[-1]) for index in range(len(blocks))),
        head=_export(_Head(decoder), _head_inputs(decoder)) if decoder.shape.last else None,
    )


class _Embed(nn.Module):
    """What comes before the layers, with the parameter names of the checkpoint."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.spec, self.embed, self.positions = decoder.spec, decoder.embed, decoder.positions

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        return embedded(self.spec, self.embed, self.positions, ids, positions)


class _Head(nn.Module):
    """What comes after the layers, with the parameter names of the checkpoint."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.spec, self.norm, self.head = decoder.spec, decoder.norm, decoder.head

    def forward(self, x: Tensor, wanted: Tensor) -> Tensor:
        return logits(self.spec, self.norm, self.head, x, wanted)


Inputs = tuple[tuple[Any, ...], tuple[Any, ...]]
"""Examples and, in the same shape, their named dynamic dimensions."""


def _embed_inputs() -> Inputs:
    return (_tokens(), _tokens()), ({0: TOKENS}, {0: TOKENS})


def _rotary_inputs() -> Inputs:
    return (_step(),), (_STEP_DIMS,)


def _block_inputs(decoder: Decoder, tokens_per_block: int) -> Inputs:
    spec, shape = decoder.spec, decoder.shape
    like = next(decoder.parameters())
    x = torch.zeros(5, spec.hidden_size, dtype=like.dtype)
    cache = torch.zeros(7, tokens_per_block, shape.num_kv_heads, spec.head_dim, dtype=like.dtype)
    half = spec.rope.rotary_dim // 2 if spec.rope else 0
    angles = (torch.zeros(5, half), torch.zeros(5, half)) if spec.rope else None
    dims = ({0: TOKENS}, {0: TOKENS}) if spec.rope else None
    examples = (x, angles, _step(), LayerCache(k=cache, v=cache.clone()))
    return examples, ({0: TOKENS}, dims, _STEP_DIMS, [{0: BLOCKS}, {0: BLOCKS}])


def _head_inputs(decoder: Decoder) -> Inputs:
    like = next(decoder.parameters())
    x = torch.zeros(5, decoder.spec.hidden_size, dtype=like.dtype)
    return (x, torch.zeros(3, dtype=torch.int64)), ({0: TOKENS}, {0: WANTED})


def _tokens() -> Tensor:
    """A tensor of its own for every input: tracing takes one object in two places for one input."""
    return torch.zeros(5, dtype=torch.int64)


def _step() -> Step:
    return Step(
        positions=_tokens(),
        sequences=_tokens(),
        lengths=torch.ones(3, dtype=torch.int64),
        block_table=torch.zeros(3, 2, dtype=torch.int64),
        wanted=torch.zeros(3, dtype=torch.int64),
    )


_STEP_DIMS = [{0: TOKENS}, {0: TOKENS}, {0: BATCH}, {0: BATCH, 1: TABLE}, {0: WANTED}]
"""In the order of Step's fields."""


def _export(module: nn.Module, inputs: Inputs) -> Program:
    examples, dims = inputs
    exported = export(module, examples, dynamic_shapes=dims, strict=False)
    _drop_assertions(exported.graph)
    check_operators(exported.graph)
    return program_of(exported, _symbols(exported, dims))


def _symbols(exported: ExportedProgram, dims: tuple[Any, ...]) -> dict[str, str]:
    """What the tracer's symbols are called, from the dynamic dimensions of the inputs."""
    specs = exported.graph_signature.input_specs
    inputs = {spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT}
    values = [node.meta.get("val") for node in exported.graph.nodes if node.name in inputs]
    axes, _ = tree_flatten(list(dims), is_leaf=lambda leaf: leaf is None or isinstance(leaf, dict))
    return {
        str(value.shape[axis]): dim.__name__
        for value, named in zip(values, axes, strict=True)
        for axis, dim in (named or {}).items()
    }


def _drop_assertions(graph: torch.fx.Graph) -> None:
    """Tracing notes what it assumed of dtypes; nothing computes with that."""
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)


def check_operators(graph: torch.fx.Graph) -> None:
    """Refuse an operator that is not in the table, with where it came from."""
    for node in graph.nodes:
        if node.op == "call_function" and operator_name(node.target) not in OPERATORS:
            origin = " ".join(node.meta.get("stack_trace", "").strip().splitlines()[-2:])
            raise UnknownOperator(
                f"{operator_name(node.target)}: no engine knows this operator; from {origin}"
            )
