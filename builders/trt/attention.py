"""Rotary embedding and attention over linear cache slots.

TensorRT refuses the packed form, so tokens go from [T, heads, D] to [B, heads, S, D] and back. Keys and
values are written into the slots in place; LOWER_RIGHT aligns causality with `key_value_lengths`, which
covers prompts in one piece, prompts in chunks, and decoding. Distance penalties and windows need a mask:
it is computed in the network from the positions, once for all layers, because every target builds it
and a mask input would be megabytes a step to fill and to move.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from builders.errors import EngineError
from builders.trt.net import Net

UPDATED = ".updated"
"""Ends the name of a cache as an output; it is the same memory as the input."""


@dataclass(kw_only=True)
class Slots:
    """What the attention of every layer shares; B sequences of S tokens each."""

    shape: Any
    """[2] B and S."""
    starts: Any
    """[B] Where the first of the new tokens is written."""
    lengths: Any
    """[B] Tokens in the slot after these."""
    size: int
    """Tokens that a slot has room for."""
    padded: dict[str, Any] = field(default_factory=dict)
    """Tensors of tokens that came from a [B, heads, S, D], by name: going back costs nothing."""
    shapes: dict[tuple[int, ...], Any] = field(default_factory=dict)
    """B, S and what follows them, as tensors."""
    masks: dict[tuple[str, int, torch.dtype], Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class Cache:
    """Keys or values of one layer: an input that is written in place and is an output too."""

    input: Any


def to_heads(net: Net, slots: Slots, x: Any) -> Any:
    """[T, heads, D] to [B, heads, S, D]"""
    if x.name in slots.padded:
        return slots.padded[x.name]
    layer = _by_sequence(net, slots, x)
    layer.second_transpose = (0, 2, 1, 3)
    return layer.get_output(0)


def _by_sequence(net: Net, slots: Slots, x: Any) -> Any:
    """A layer that makes [B, S, ...] of [T, ...]."""
    inner = tuple(x.shape)[1:]
    if inner not in slots.shapes:
        slots.shapes[inner] = net.concat([slots.shape, net.constant(torch.tensor(inner))], 0)
    layer = net.layer("shuffle", x)
    layer.set_input(1, slots.shapes[inner])
    return layer


def from_heads(net: Net, slots: Slots, x: Any) -> Any:
    """[B, heads, S, D] to [T, heads, D]"""
    _batch, heads, _tokens, size = x.shape
    layer = net.layer("shuffle", x)
    layer.first_transpose = (0, 2, 1, 3)
    layer.reshape_dims = (-1, heads, size)
    packed = layer.get_output(0)
    slots.padded[packed.name] = x
    return packed


def rotate(net: Net, slots: Slots, x: Any, cos: Any, sin: Any) -> Any:
    """In float32, as the operator is defined: half of a bfloat16's bits would be lost on long contexts."""
    heads = net.cast(to_heads(net, slots, x), torch.float32)
    cos, sin = (by_sequence(net, slots, table) for table in (cos, sin))
    layer = net.layer("rotary_embedding", heads, cos, sin, False, 2 * cos.shape[-1])
    return from_heads(net, slots, net.cast(layer.get_output(0), net.torch_dtype(x)))


def by_sequence(net: Net, slots: Slots, x: Any) -> Any:
    """[T, N] to [B, S, N], once for all layers."""
    if x.name not in slots.padded:
        slots.padded[x.name] = _by_sequence(net, slots, x).get_output(0)
    return slots.padded[x.name]


def attention(
    net: Net,
    slots: Slots,
    q: Any,
    k: Any,
    v: Any,
    k_cache: Cache,
    v_cache: Cache,
    positions: Any,
    _sequences: Any,
    _lengths: Any,
    _block_table: Any,
    slopes: Any,
    k_scale: Any,
    v_scale: Any,
    scale: float,
    window: int,
) -> Any:
    """Write, then attend; the slots take the place of the paged cache's table."""
    if k_scale is not None or v_scale is not None:
        raise EngineError("rankforge.attention: TensorRT's cache is float32, float16 or bfloat16; use one")
    dtype = net.torch_dtype(q)
    keys, values = (_updated(net, slots, *pair) for pair in ((k_cache, k), (v_cache, v)))
    scaled = net.binary("PROD", net.cast(to_heads(net, slots, q), torch.float32), scale)
    masked = slopes is not None or window > 0
    mask = _mask(net, slots, positions, slopes, window, dtype) if masked else None
    kind, norm = net.trt.CausalMaskKind, net.trt.AttentionNormalizationOp.SOFTMAX
    causal = kind.NONE if masked else kind.LOWER_RIGHT
    layer = net.layer("attention_v2", net.cast(scaled, dtype), keys, values, norm, causal)
    layer.decomposable = True
    # Beside a mask, which hides what lies beyond them, no kernel reads the lengths.
    if masked:
        layer.mask = mask
    else:
        layer.key_value_lengths = slots.lengths
    return from_heads(net, slots, layer.get_output(0))


def _updated(net: Net, slots: Slots, cache: Cache, new: Any) -> Any:
    mode = net.trt.KVCacheMode.LINEAR
    updated = net.add("kv_cache_update", cache.input, to_heads(net, slots, new), slots.starts, mode)
    updated.name = cache.input.name + UPDATED
    net.definition.mark_output(updated)
    return updated


def _mask(net: Net, slots: Slots, positions: Any, slopes: Any, window: int, dtype: torch.dtype) -> Any:
    key = ("" if slopes is None else slopes.name, window, dtype)
    if key not in slots.masks:
        visible, distance = _sight(net, slots, positions, window)
        slots.masks[key] = visible if slopes is None else _bias(net, visible, distance, slopes, dtype)
    return slots.masks[key]


def _sight(net: Net, slots: Slots, positions: Any, window: int) -> tuple[Any, Any]:
    """Whether a token sees a place of its slot, and how far back that is: [B, 1, S, places] each."""
    here = to_heads(net, slots, net.reshape(positions, (-1, 1, 1)))
    there = net.constant(torch.arange(slots.size, dtype=torch.int32).view(1, 1, 1, -1))
    distance = net.binary("SUB", here, there)
    visible = net.binary("GREATER", distance, -1)
    if window:
        visible = net.binary("AND", visible, net.binary("LESS", distance, window))
    return visible, distance


def _bias(net: Net, visible: Any, distance: Any, slopes: Any, dtype: torch.dtype) -> Any:
    """[B, heads, S, places] What ALiBi adds to the scores; a finite lowest value keeps NaN away."""
    steep = net.reshape(slopes, (1, -1, 1, 1))
    bias = net.binary("SUB", 0.0, net.binary("PROD", steep, distance))
    return net.cast(net.select(visible, bias, torch.finfo(dtype).min), dtype)
