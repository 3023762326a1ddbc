"""A rank's decoder as exported graphs: one for what comes before the layers, one a distinct layer,
one for what comes after. Every engine is made from these and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from builders.decoder import Decoder, embedded, logits
from builders.ops import LayerCache, Step

Piece = Literal["embed", "rotary", "block", "head"]

TOKENS, BATCH, TABLE, BLOCKS, WANTED = (Dim(name) for name in ("tokens", "batch", "table", "blocks", "wanted"))

OPERATORS = frozenset(
    """
    rankforge.attention rankforge.rotate rankforge.moe rankforge.quantized_linear
    rankforge.all_reduce rankforge.all_gather
    aten.linear aten.embedding aten.index_select aten.rms_norm aten.layer_norm
    aten.add aten.sub aten.mul aten.div aten.pow aten.square aten.rsqrt aten.mean
    aten.cos aten.sin aten.where aten.gt aten.ge aten.lt aten.logical_and aten.clamp
    aten.silu aten.gelu aten.relu aten.to aten.narrow aten.unsqueeze aten.flatten aten.unflatten
    aten.split_with_sizes aten.chunk aten.cat aten.zeros_like
    """.split()
)
"""All that a graph may hold; every lowering knows all of them."""


class UnknownOperator(Exception):
    """A graph holds an operator that no engine knows."""


@dataclass(frozen=True, kw_only=True)
class Graphs:
    """The exported pieces of one rank. Layers of equal structure share a graph."""

    embed: ExportedProgram | None
    rotary: ExportedProgram | None
    blocks: Mapping[str, ExportedProgram]
    """Structure to graph."""
    layers: Mapping[int, str]
    """Layer to structure."""
    head: ExportedProgram | None


def export_rank(decoder: Decoder) -> Graphs:
    """Export every piece; the decoder's weights become inputs and are not read."""
    layers = {int(index): _structure(decoder, int(index)) for index in decoder.layers}
    first_of = {structure: index for index, structure in reversed(layers.items())}
    return Graphs(
        embed=_export(_Embed(decoder), _embed_inputs()) if decoder.shape.first else None,
        rotary=_export(decoder.rotary, _rotary_inputs()) if decoder.rotary else None,
        blocks={
            structure: _export(decoder.layers[str(index)], _block_inputs(decoder))
            for structure, index in first_of.items()
        },
        layers=layers,
        head=_export(_Head(decoder), _head_inputs(decoder)) if decoder.shape.last else None,
    )


def _structure(decoder: Decoder, layer: int) -> str:
    """Layers differ in nothing but weights, unless the attention scale depends on the layer."""
    return f"block{layer}" if decoder.spec.scale_by_layer else "block"


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


def _block_inputs(decoder: Decoder) -> Inputs:
    spec, shape = decoder.spec, decoder.shape
    like = next(decoder.parameters())
    x = torch.zeros(5, spec.hidden_size, dtype=like.dtype)
    cache = torch.zeros(7, 4, shape.num_kv_heads, spec.head_dim, dtype=like.dtype)
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


def _export(module: nn.Module, inputs: Inputs) -> ExportedProgram:
    examples, dims = inputs
    program = export(module, examples, dynamic_shapes=dims, strict=False)
    _drop_assertions(program)
    check_operators(program)
    return program


def _drop_assertions(program: ExportedProgram) -> None:
    """Tracing notes what it assumed of dtypes; nothing computes with that."""
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
    program.graph_module.recompile()


def check_operators(program: ExportedProgram) -> None:
    """Refuse an operator that is not in the table, with where it came from."""
    for node in program.graph.nodes:
        name = _operator(node)
        if name is not None and name not in OPERATORS:
            stack = node.meta.get("stack_trace", "").strip().splitlines()
            raise UnknownOperator(f"{name}: no engine knows this operator; it comes from {' '.join(stack[-2:])}")


def _operator(node: torch.fx.Node) -> str | None:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    return f"{node.target.namespace}.{node.target._schema.name.split('::')[1]}"
