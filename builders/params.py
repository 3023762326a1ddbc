"""The parameters of a decoder before it is split: their names, shapes, and how each kind splits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from builders.spec import ModelSpec

Kind = Literal[
    "replicated",
    "q",  # rows by query heads
    "kv",  # rows by key-value heads, copied where ranks outnumber heads
    "column",  # rows by intermediate width
    "row",  # columns, by query heads or intermediate width; its product is summed over ranks
    "row_bias",  # added once: rank 0 holds it, the others zeros
    "vocab",  # rows by padded vocabulary
    "embedding",  # whole, by vocabulary or by hidden dimension, as the mapping says
]


@dataclass(frozen=True, kw_only=True)
class Param:
    """One whole tensor, named as in the decoder but with q, k, v, gate, up and experts apart."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    units: int = 1
    """Heads along the dimension that splits."""
    layer: int | None = None
    expert: int | None = None


def params(spec: ModelSpec) -> Iterator[Param]:
    """Every parameter of the model, in the order of the forward pass."""
    yield from embedding_params(spec)
    for layer in range(spec.num_layers):
        yield from layer_params(spec, layer)
    yield from head_params(spec)


def embedding_params(spec: ModelSpec) -> Iterator[Param]:
    """What comes before the first layer."""
    yield Param(name="embed.weight", shape=(spec.vocab_size, spec.hidden_size), kind="embedding")
    if spec.position == "learned":
        shape = (spec.max_positions, spec.hidden_size)
        yield Param(name="positions.weight", shape=shape, kind="replicated")


def head_params(spec: ModelSpec) -> Iterator[Param]:
    """What comes after the last layer."""
    yield from _norm(spec, "norm", spec.hidden_size, None)
    yield Param(name="head.weight", shape=(spec.vocab_size, spec.hidden_size), kind="vocab")
    if spec.head_bias:
        yield Param(name="head.bias", shape=(spec.vocab_size,), kind="vocab")


def layer_params(spec: ModelSpec, layer: int) -> Iterator[Param]:
    """Every parameter of one layer."""
    prefix = f"layers.{layer}"
    yield from _norm(spec, f"{prefix}.attn_norm", spec.hidden_size, layer)
    yield from _attention(spec, f"{prefix}.attn", layer)
    yield from _norm(spec, f"{prefix}.mlp_norm", spec.hidden_size, layer)
    if spec.moe is None:
        yield from _mlp(spec, f"{prefix}.mlp", layer, None)
        return
    router = (spec.moe.num_experts, spec.hidden_size)
    yield Param(name=f"{prefix}.moe.router.weight", shape=router, kind="replicated", layer=layer)
    for expert in range(spec.moe.num_experts):
        yield from _mlp(spec, f"{prefix}.moe.experts.{expert}", layer, expert)


def _norm(spec: ModelSpec, prefix: str, size: int, layer: int | None) -> Iterator[Param]:
    yield Param(name=f"{prefix}.weight", shape=(size,), kind="replicated", layer=layer)
    if spec.norm_bias:
        yield Param(name=f"{prefix}.bias", shape=(size,), kind="replicated", layer=layer)


def _attention(spec: ModelSpec, prefix: str, layer: int) -> Iterator[Param]:
    heads: list[tuple[str, Kind, int]] = [
        ("q", "q", spec.num_heads),
        ("k", "kv", spec.num_kv_heads),
        ("v", "kv", spec.num_kv_heads),
    ]
    for name, kind, units in heads:
        shape = (units * spec.head_dim, spec.hidden_size)
        yield from _linear(f"{prefix}.{name}", shape, spec.qkv_bias, kind, units, layer)
    if spec.qk_norm:
        yield from _qk_norm(spec, prefix, layer)
    out = (spec.hidden_size, spec.q_size)
    yield from _linear(f"{prefix}.o", out, spec.attention_out_bias, "row", spec.num_heads, layer)


def _qk_norm(spec: ModelSpec, prefix: str, layer: int) -> Iterator[Param]:
    sizes: list[tuple[str, Kind, int]] = [("q", "q", spec.num_heads), ("k", "kv", spec.num_kv_heads)]
    for name, kind, units in sizes:
        for param in _norm(spec, f"{prefix}.{name}_norm", spec.head_dim, layer):
            if spec.qk_norm == "head":
                yield param
            else:
                shape = (units * spec.head_dim,)
                yield Param(name=param.name, shape=shape, kind=kind, units=units, layer=layer)


def _mlp(spec: ModelSpec, prefix: str, layer: int, expert: int | None) -> Iterator[Param]:
    width, hidden = spec.intermediate_size, spec.hidden_size
    bias = spec.mlp_bias
    for name in ("gate", "up") if spec.gated else ("up",):
        yield from _linear(f"{prefix}.{name}", (width, hidden), bias, "column", width, layer, expert)
    yield from _linear(f"{prefix}.down", (hidden, width), bias, "row", width, layer, expert)


def _linear(
    prefix: str,
    shape: tuple[int, int],
    bias: bool,
    kind: Kind,
    units: int,
    layer: int,
    expert: int | None = None,
) -> Iterator[Param]:
    yield Param(name=f"{prefix}.weight", shape=shape, kind=kind, units=units, layer=layer, expert=expert)
    if bias:
        bias_kind: Kind = "row_bias" if kind == "row" else kind
        yield Param(
            name=f"{prefix}.bias", shape=shape[:1], kind=bias_kind, units=units, layer=layer, expert=expert
        )
