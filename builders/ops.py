"""The operations that engines replace by kernels of their own, in plain PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from builders.spec import Activation


@dataclass(frozen=True, kw_only=True)
class Step:
    """One forward pass over T tokens of B sequences, packed without padding."""

    positions: Tensor
    """[T] Place of each token in its sequence."""
    sequences: Tensor
    """[T] Row of `block_table` that each token belongs to."""
    lengths: Tensor
    """[B] Tokens of each sequence in the cache after this step."""
    block_table: Tensor
    """[B, blocks] The cache blocks of each sequence, in order."""
    wanted: Tensor
    """[R] The tokens whose logits are wanted."""


@dataclass(frozen=True, kw_only=True)
class LayerCache:
    """Keys and values of one layer, [blocks, tokens per block, kv heads, head_dim] each."""

    k: Tensor
    v: Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: LayerCache,
    step: Step,
    *,
    scale: float,
    window: int | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """Write k and v [T, kv heads, D] to the cache, then attend with q [T, heads, D] causally.

    `slopes` [heads] adds ALiBi's distance penalty; `window` limits how far back a token sees.
    """
    block = cache.k.shape[1]
    slots = step.block_table[step.sequences, step.positions // block] * block
    slots = slots + step.positions % block
    cache.k.view(-1, *k.shape[1:])[slots] = k
    cache.v.view(-1, *v.shape[1:])[slots] = v

    repeat = q.shape[1] // k.shape[1]
    keys, values = (
        part[step.block_table].flatten(1, 2)[step.sequences].repeat_interleave(repeat, dim=2)
        for part in (cache.k, cache.v)
    )  # [T, slots, heads, D]
    distance = step.positions[:, None] - torch.arange(keys.shape[1], device=q.device)  # [T, slots]
    scores = torch.einsum("thd,tshd->ths", q.float(), keys.float()) * scale
    if slopes is not None:
        scores = scores - slopes[:, None] * distance[:, None]
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    scores = scores.masked_fill(hidden[:, None], float("-inf"))
    return torch.einsum("ths,tshd->thd", scores.softmax(-1), values.float()).to(q.dtype)


def moe(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    up: Tensor,
    down: Tensor,
    *,
    first_expert: Tensor,
    activation: Activation,
    gated: bool,
) -> Tensor:
    """Sum over the experts held here of weight · expert(x).

    x [T, H]; chosen and weights [T, top_k]; up [experts, width, H]; down [experts, H, width].
    """
    out = torch.zeros_like(x)
    for expert in range(up.shape[0]):
        token, place = torch.where(chosen == expert + first_expert)
        hidden = act(F.linear(x[token], up[expert]), activation, gated)
        out.index_add_(0, token, F.linear(hidden, down[expert]) * weights[token, place, None])
    return out


def act(x: Tensor, activation: Activation, gated: bool) -> Tensor:
    """The activation; where gated, of the first half, times the second."""
    if gated:
        gate, x = x.chunk(2, dim=-1)
        return _ACTIVATIONS[activation](gate) * x
    return _ACTIVATIONS[activation](x)


_ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}
