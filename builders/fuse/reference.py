"""What every fused operator means, in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from builders import ops
from builders.ops import act, attended, rotated, write
from builders.program import Operators


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm: str,
    eps: float,
    activation: str,
    gated: bool,
) -> Tensor:
    """act(norm(x) · weightᵀ + bias) + residual.

    `norm` is none, rms, layer or layer1p, whose weights lack 1; `activation` is none or one of the
    model's. Where gated, `weight` holds the gate's rows and then those that the activated gate multiplies.
    """
    if norm_weight is not None:
        x = _normalized(x, norm_weight, norm_bias, norm, eps)
    y = F.linear(x, weight, bias)
    if activation != "none":
        y = act(y, activation, gated)
    return y if residual is None else residual + y


def _normalized(x: Tensor, weight: Tensor, bias: Tensor | None, norm: str, eps: float) -> Tensor:
    if norm == "rms":
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.layer_norm(x, weight.shape, weight + 1 if norm == "layer1p" else weight, bias, eps)


def rotate_and_attend(
    qkv: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    sequences: Tensor,
    lengths: Tensor,
    block_table: Tensor,
    slopes: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    scale: float,
    window: int,
    heads: int,
    clip: float | None,
) -> Tensor:
    """q and k rotated, k and v written to the cache, then causal attention [T, heads, D].

    qkv [T, (heads + 2 kv heads) · D] is first limited to ±clip; without cos and sin nothing is rotated.
    """
    kv_heads, dim = k_cache.shape[2:]
    packed = (qkv if clip is None else qkv.clamp(-clip, clip)).unflatten(-1, (-1, dim))
    q, k, v = packed.split([heads, kv_heads, kv_heads], dim=1)
    if cos is not None and sin is not None:
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
    write(k, v, k_cache, v_cache, positions, sequences, block_table, k_scale, v_scale)
    where = (k_cache, v_cache, positions, sequences, lengths, block_table)
    return attend(q, *where, slopes, k_scale, v_scale, scale, window)


def attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    sequences: Tensor,
    _lengths: Tensor,
    block_table: Tensor,
    *settings: Tensor | float | None,
) -> Tensor:
    """Causal attention [T, heads, D] over what is in the cache; see `builders.ops.attention`."""
    return attended(q, k_cache, v_cache, positions, sequences, block_table, *settings)  # type: ignore[arg-type]


def embed(
    ids: Tensor,
    weight: Tensor,
    first: Tensor | None,
    scale: float,
    positions: Tensor | None,
    position_weight: Tensor | None,
) -> Tensor:
    """Rows of `weight` times `scale`, plus rows of `position_weight`.

    With `first`, `weight` holds only the rows from there on; ids of other rows give zeros.
    """
    x = F.embedding(ids, weight) if first is None else _held(ids - first, weight)
    if scale != 1:
        x = x * scale
    if positions is None or position_weight is None:
        return x
    return x + F.embedding(positions, position_weight)


def _held(local: Tensor, weight: Tensor) -> Tensor:
    rows = weight.shape[0]
    held = (local >= 0) & (local < rows)
    return F.embedding(local.clamp(0, rows - 1), weight) * held[:, None].to(weight.dtype)


def all_reduce(x: Tensor, ranks: int, residual: Tensor | None) -> Tensor:
    """The sum over the tensor parallel ranks, + residual."""
    y = ops.all_reduce(x, ranks)
    return y if residual is None else residual + y


def fused_operators() -> Operators:
    """Every operator that `fused` adds."""
    return {
        "fused.embed": embed,
        "fused.linear": linear,
        "fused.rotate_and_attend": rotate_and_attend,
        "fused.write": write,
        "fused.attend": attend,
        "fused.all_reduce": all_reduce,
    }
