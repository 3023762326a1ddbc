"""The parts of a decoder, in plain PyTorch for one device; sizes are those of the rank at hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from builders.mapping import RankShape
from builders.ops import LayerCache, Step, act, attention, moe, rotate
from builders.rope import cos_sin, tables
from builders.spec import ModelSpec, RopeSpec


class Linear(nn.Module):
    """x · weightᵀ + bias."""

    def __init__(self, size_in: int, size_out: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size_out, size_in))
        self.bias = nn.Parameter(torch.empty(size_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Norm(nn.Module):
    """LayerNorm, LayerNorm1p or RMSNorm over the last dimension."""

    def __init__(self, spec: ModelSpec, size: int) -> None:
        super().__init__()
        self.kind, self.eps = spec.norm, spec.norm_eps
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size)) if spec.norm_bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "rmsnorm":
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        weight = self.weight + 1 if self.kind == "layernorm1p" else self.weight
        return F.layer_norm(x, weight.shape, weight, self.bias, self.eps)


class Embedding(nn.Module):
    """A table of rows."""

    def __init__(self, rows: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, size))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class Attention(nn.Module):
    """Self-attention of the heads that this rank holds."""

    slopes: Tensor | None

    def __init__(self, spec: ModelSpec, shape: RankShape, layer: int) -> None:
        super().__init__()
        self.spec, self.heads, self.kv_heads = spec, shape.num_heads, shape.num_kv_heads
        self.scale = spec.attention_scale / (layer + 1 if spec.scale_by_layer else 1)
        q, kv = (heads * spec.head_dim for heads in (self.heads, self.kv_heads))
        self.qkv = Linear(spec.hidden_size, q + 2 * kv, bias=spec.qkv_bias)
        if spec.qk_norm:
            whole = spec.qk_norm == "whole"
            self.q_norm: nn.Module = Norm(spec, q if whole else spec.head_dim)
            self.k_norm: nn.Module = Norm(spec, kv if whole else spec.head_dim)
        self.o = Linear(q, spec.hidden_size, bias=spec.attention_out_bias)
        slopes = torch.empty(self.heads) if spec.position == "alibi" else None
        self.register_buffer("slopes", slopes, persistent=False)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, step: Step, cache: LayerCache
    ) -> Tensor:
        q, k, v = self._project(x)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        out = attention(
            q,
            k,
            v,
            cache.k,
            cache.v,
            step.positions,
            step.sequences,
            step.lengths,
            step.block_table,
            self.slopes,
            None,
            None,
            self.scale,
            self.spec.sliding_window or 0,
        )
        return self.o(out.flatten(1))  # type: ignore[no-any-return]

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [T, heads, D], k and v [T, kv heads, D]"""
        dim = self.spec.head_dim
        qkv = self.qkv(x)
        if self.spec.clip_qkv is not None:
            qkv = qkv.clamp(-self.spec.clip_qkv, self.spec.clip_qkv)
        q, k, v = qkv.split([self.heads * dim, self.kv_heads * dim, self.kv_heads * dim], dim=-1)
        if self.spec.qk_norm == "whole":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (part.unflatten(-1, (-1, dim)) for part in (q, k, v))
        if self.spec.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v


class Mlp(nn.Module):
    """Two linear layers, gated or not; where gated, `up` holds the gate's rows first."""

    def __init__(self, spec: ModelSpec, shape: RankShape) -> None:
        super().__init__()
        self.spec = spec
        width = shape.intermediate_size
        self.up = Linear(spec.hidden_size, width * (1 + spec.gated), bias=spec.mlp_bias)
        self.down = Linear(width, spec.hidden_size, bias=spec.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(act(self.up(x), self.spec.activation, self.spec.gated))  # type: ignore[no-any-return]


class Moe(nn.Module):
    """A router over all experts, and the experts that this rank holds."""

    first_expert: Tensor

    def __init__(self, spec: ModelSpec, shape: RankShape) -> None:
        super().__init__()
        assert spec.moe is not None, "a spec without experts has an Mlp"
        self.spec, self.routing = spec, spec.moe
        self.router = Linear(spec.hidden_size, spec.moe.num_experts, bias=False)
        experts, width, hidden = shape.num_experts, shape.intermediate_size, spec.hidden_size
        self.up = Experts(experts, width * (1 + spec.gated), hidden)
        self.down = Experts(experts, hidden, width)
        self.register_buffer("first_expert", torch.tensor(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return moe(
            x,
            self.router(x),
            self.up.weight,
            self.down.weight,
            None,
            None,
            self.first_expert,
            self.routing.top_k,
            self.routing.renormalize,
            self.spec.activation,
            self.spec.gated,
        )


class Experts(nn.Module):
    """The same matrix of several experts."""

    def __init__(self, experts: int, rows: int, cols: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, rows, cols))


class Block(nn.Module):
    """One layer: attention and MLP, each after a norm and beside a residual."""

    def __init__(self, spec: ModelSpec, shape: RankShape, layer: int) -> None:
        super().__init__()
        self.attn_norm = Norm(spec, spec.hidden_size)
        self.attn = Attention(spec, shape, layer)
        self.mlp_norm = Norm(spec, spec.hidden_size)
        if spec.moe is None:
            self.mlp = Mlp(spec, shape)
        else:
            self.moe = Moe(spec, shape)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, step: Step, cache: LayerCache
    ) -> Tensor:
        x = x + self.attn(self.attn_norm(x), rotary, step, cache)
        return x + self.ffn(self.mlp_norm(x))  # type: ignore[no-any-return]

    @property
    def ffn(self) -> Mlp | Moe:
        """Whichever of the two this model has."""
        return self.mlp if hasattr(self, "mlp") else self.moe


class Rotary(nn.Module):
    """cos and sin of a step's tokens, computed once for all layers."""

    frequencies: Tensor
    by_length: Tensor

    def __init__(self, spec: RopeSpec) -> None:
        super().__init__()
        self.spec = spec
        frequencies, by_length = tables(spec)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.register_buffer("by_length", by_length, persistent=False)

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        lengths = step.lengths.index_select(0, step.sequences)
        return cos_sin(self.spec, (self.frequencies, self.by_length), step.positions, lengths)
