"""The operators that engines replace by kernels of their own, each with its meaning in plain PyTorch.

They stay whole in an exported graph. Optional scales leave room for quantized weights and caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import Library, infer_schema, register_fake


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


torch.export.register_dataclass(Step)
torch.export.register_dataclass(LayerCache)


_LIBRARY = Library("rankforge", "DEF")

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def _operator(name: str, *, mutates_args: tuple[str, ...] = ()) -> Callable[[FunctionT], FunctionT]:
    """Registers a function. `torch.library.custom_op` would import a compiler when it is first called."""

    def register(function: FunctionT) -> FunctionT:
        _LIBRARY.define(name + infer_schema(function, mutates_args=mutates_args))
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        return cast(FunctionT, getattr(torch.ops.rankforge, name))

    return register


def _shape_of(name: str) -> Callable[[FunctionT], FunctionT]:
    """Registers what an operator gives, as far as tracing is concerned."""
    return cast(Callable[[FunctionT], FunctionT], register_fake(f"rankforge::{name}"))


@_operator("attention", mutates_args=("k_cache", "v_cache"))
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
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
) -> Tensor:
    """Write k and v [T, kv heads, D] to the cache, then attend with q [T, heads, D] causally.

    `slopes` [heads] adds ALiBi's distance penalty; `window` limits how far back a token sees, 0 is
    no limit; `k_scale` and `v_scale` divide what is written to the cache and multiply what is read.
    """
    write(k, v, k_cache, v_cache, positions, sequences, block_table, k_scale, v_scale)
    return attended(
        q, k_cache, v_cache, positions, sequences, block_table, slopes, k_scale, v_scale, scale, window
    )


def write(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    sequences: Tensor,
    block_table: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> None:
    """The first half of `attention`."""
    block = k_cache.shape[1]
    slots = block_table[sequences, positions // block] * block + positions % block
    for new, cache, quantum in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
        cache.view(-1, *new.shape[1:])[slots] = (new if quantum is None else new / quantum).to(cache.dtype)


def attended(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    sequences: Tensor,
    block_table: Tensor,
    slopes: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    scale: float,
    window: int,
) -> Tensor:
    """The second half of `attention`."""
    repeat = q.shape[1] // k_cache.shape[2]
    keys, values = (
        _read(cache, quantum, block_table)[sequences].repeat_interleave(repeat, dim=2)
        for cache, quantum in ((k_cache, k_scale), (v_cache, v_scale))
    )  # [T, slots, heads, D]
    distance = positions[:, None] - torch.arange(keys.shape[1], device=q.device)  # [T, slots]
    scores = torch.einsum("thd,tshd->ths", q.float(), keys) * scale
    if slopes is not None:
        scores = scores - slopes[:, None] * distance[:, None]
    hidden = (distance < 0) | (distance >= window) if window else distance < 0
    scores = scores.masked_fill(hidden[:, None], float("-inf"))
    return torch.einsum("ths,tshd->thd", scores.softmax(-1), values).to(q.dtype)


def _read(cache: Tensor, quantum: Tensor | None, block_table: Tensor) -> Tensor:
    """Every sequence's slots in order, [B, slots, kv heads, D]."""
    slots = cache[block_table].flatten(1, 2).float()
    return slots if quantum is None else slots * quantum


@_shape_of("attention")
def _(q: Tensor, *_others: object) -> Tensor:
    return torch.empty_like(q)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the leading dimensions of every head of x [T, heads, D], half against half; cos [T, half]."""
    half = cos.shape[-1]
    first, second, rest = x.float().split([half, half, x.shape[-1] - 2 * half], dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1).to(x.dtype)


rotate = _operator("rotate")(rotated)


@_shape_of("rotate")
def _(x: Tensor, _cos: Tensor, _sin: Tensor) -> Tensor:
    return torch.empty_like(x)


@_operator("moe")
def moe(
    x: Tensor,
    logits: Tensor,
    up: Tensor,
    down: Tensor,
    up_scale: Tensor | None,
    down_scale: Tensor | None,
    first_expert: Tensor,
    top_k: int,
    renormalize: bool,
    activation: str,
    gated: bool,
) -> Tensor:
    """Sum over the chosen experts that are held here of weight · expert(x).

    x [T, H]; logits [T, all experts]; up [experts, width, H]; down [experts, H, width].
    """
    weights, chosen = route(logits, top_k, renormalize)
    up, down = _dequantized(up, up_scale, x.dtype), _dequantized(down, down_scale, x.dtype)
    out = torch.zeros_like(x)
    for expert in range(up.shape[0]):
        token, place = torch.where(chosen == expert + first_expert)
        hidden = act(F.linear(x[token], up[expert]), activation, gated)
        out.index_add_(0, token, F.linear(hidden, down[expert]) * weights[token, place, None].to(x.dtype))
    return out


@_shape_of("moe")
def _(x: Tensor, *_others: object) -> Tensor:
    return torch.empty_like(x)


def route(logits: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """Weights and experts [T, top_k]."""
    if renormalize:
        best, chosen = logits.float().topk(top_k)
        return best.softmax(-1), chosen
    best, chosen = logits.float().softmax(-1).topk(top_k)
    return best, chosen


@_operator("quantized_linear")
def quantized_linear(
    x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None
) -> Tensor:
    """x · ((weight - zero) · scale)ᵀ + bias.

    weight [out, in] is stored narrow; scale and zero [out, groups] hold for in / groups columns each.
    """
    wide = weight.to(x.dtype).unflatten(-1, (scale.shape[-1], -1))
    if zero is not None:
        wide = wide - zero[..., None].to(x.dtype)
    return F.linear(x, (wide * scale[..., None].to(x.dtype)).flatten(1), bias)


@_shape_of("quantized_linear")
def _(x: Tensor, weight: Tensor, *_others: object) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _dequantized(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    return weight if scale is None else (weight.to(dtype) * scale.to(dtype))


class Communicator(Protocol):
    """Joins the ranks of a group."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over ranks."""

    def all_gather(self, x: Tensor) -> Tensor:
        """All ranks' tensors, side by side along the last dimension."""


_tensor_parallel: ContextVar[Communicator] = ContextVar("tensor_parallel")


@contextmanager
def tensor_parallel(comm: Communicator) -> Iterator[None]:
    """The group that the collectives of this thread's graphs mean."""
    token = _tensor_parallel.set(comm)
    try:
        yield
    finally:
        _tensor_parallel.reset(token)


@_operator("all_reduce")
def all_reduce(x: Tensor, ranks: int) -> Tensor:
    """The sum over the tensor parallel ranks."""
    return _tensor_parallel.get().all_reduce(x)


@_shape_of("all_reduce")
def _(x: Tensor, _ranks: int) -> Tensor:
    return torch.empty_like(x)


@_operator("all_gather")
def all_gather(x: Tensor, ranks: int) -> Tensor:
    """The tensor parallel ranks' tensors, side by side along the last dimension."""
    return _tensor_parallel.get().all_gather(x)


@_shape_of("all_gather")
def _(x: Tensor, ranks: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] * ranks)


def act(x: Tensor, activation: str, gated: bool) -> Tensor:
    """The activation; where gated, of the first half, times the second."""
    if gated:
        gate, x = x.chunk(2, dim=-1)
        return _ACTIVATIONS[activation](gate) * x
    return _ACTIVATIONS[activation](x)


_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}
