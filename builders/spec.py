"""What a decoder is, as frozen plain data: the one description that every family maps into."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from builders.errors import ConfigError
from builders.plain import from_json

NormKind = Literal["layernorm", "layernorm1p", "rmsnorm"]
PositionKind = Literal["learned", "rope", "alibi", "none"]
Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "relu2"]
RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]


MOST_LAYERS, MOST_EXPERTS, MOST_EXPERTS_OF_ALL_LAYERS = 10_000, 10_000, 200_000
"""Far above every model, and so low that listing all parameters takes seconds."""


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """Rotary embedding; `builders/rope.py` turns it into frequencies."""

    kind: RopeKind = "default"
    theta: float = 10000.0
    """Base wavelength."""
    rotary_dim: int
    """How many leading dimensions of a head are rotated."""
    factor: float = 1.0
    """Context extension; every kind but `default` reads it."""
    max_positions: int = 0
    """`dynamic`: the length up to which nothing is scaled."""
    original_max_positions: int = 0
    """`llama3`, `yarn`, `longrope`: the length of pretraining."""
    attention_factor: float = 1.0
    """Multiplies cos and sin (`yarn`, `longrope`)."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    """`yarn`: round the bounds of its ramp to whole dimensions."""
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise ConfigError(f"rotary_dim={self.rotary_dim}: must be even")
        for name in ("theta", "factor", "attention_factor", "beta_fast", "beta_slow"):
            _check_number(f"rope.{name}", getattr(self, name), positive=True)
        for factor in (*self.short_factor, *self.long_factor):
            _check_number("rope.short_factor, long_factor", factor, positive=True)
        _check_scaling(self)


@dataclass(frozen=True, kw_only=True)
class MoeSpec:
    """A mixture of experts in place of every MLP."""

    num_experts: int
    top_k: int
    renormalize: bool
    """True: top-k, then softmax over the chosen. False: softmax over all, then top-k."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One pre-norm decoder: everything the decoder, the shards and the engines need to know."""

    family: str
    """The table in `builders/families` that made this spec."""
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    """Width of the MLP, of each expert when there are experts."""
    max_positions: int
    """Longest sequence; the size of the table when positions are learned."""

    norm: NormKind
    norm_eps: float
    norm_bias: bool = False
    position: PositionKind
    rope: RopeSpec | None = None
    alibi_bias_max: float = 8.0

    activation: Activation
    gated: bool = False
    moe: MoeSpec | None = None

    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    attention_scale: float
    """Multiplies q·k."""
    scale_by_layer: bool = False
    """Divide the attention scale of layer i by i + 1 (GPT-2's option)."""
    sliding_window: int | None = None
    """A token sees itself and the `sliding_window - 1` tokens before it."""
    clip_qkv: float | None = None
    qk_norm: Literal["whole", "head"] | None = None
    """Normalize q and k over all heads at once, or each head by itself."""

    tied_embeddings: bool = False
    head_bias: bool = False
    embedding_scale: float = 1.0
    logit_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        _check_counts(self)
        for name in _FINITE:
            _check_number(name, getattr(self, name))
        for name in ("norm_eps", "clip_qkv"):
            _check_number(name, getattr(self, name), positive=True)
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_kv_heads={self.num_kv_heads}: must divide the {self.num_heads} attention heads"
            )
        if (self.rope is not None) != (self.position == "rope"):
            raise ConfigError(f"position={self.position!r} and rope={self.rope}: give both or neither")
        if self.moe and not 1 <= self.moe.top_k <= self.moe.num_experts:
            raise ConfigError(
                f"top_k={self.moe.top_k}: must be between 1 and the {self.moe.num_experts} experts"
            )
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ConfigError(f"sliding_window={self.sliding_window}: must be at least 1")

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.num_kv_heads * self.head_dim

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for a config.json."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> ModelSpec:
        """The inverse of `to_json`; an unknown or missing field is an error that names it."""
        return from_json(ModelSpec, data)


_POSITIVE = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "intermediate_size",
    "max_positions",
)

_FINITE = ("attention_scale", "alibi_bias_max", "embedding_scale", "logit_scale")


def _check_counts(spec: ModelSpec) -> None:
    """What is gone through one by one."""
    experts = spec.moe.num_experts if spec.moe else 0
    total = f"num_layers={spec.num_layers} x num_experts"
    for name, count, most in (
        ("num_layers", spec.num_layers, MOST_LAYERS),
        ("num_experts", experts, MOST_EXPERTS),
        (total, experts * spec.num_layers, MOST_EXPERTS_OF_ALL_LAYERS),
    ):
        if count > most:
            raise ConfigError(f"{name}={count}: must be at most {most}")


def _check_number(name: str, value: float | None, *, positive: bool = False) -> None:
    if value is not None and not (math.isfinite(value) and (value > 0 or not positive)):
        raise ConfigError(f"{name}={value}: must be a finite number{' above 0' if positive else ''}")


def _check_scaling(rope: RopeSpec) -> None:
    """What the formulas of one kind or another cannot do without."""
    kind, half, original = rope.kind, rope.rotary_dim // 2, rope.original_max_positions
    sizes = {len(rope.short_factor), len(rope.long_factor)}
    if kind in ("llama3", "yarn", "longrope") and original < 1:
        raise ConfigError(f"rope.original_max_positions={original}: must be at least 1")
    if kind == "dynamic" and (rope.max_positions < 1 or half < 2):
        raise ConfigError(f"rope.kind='dynamic', rotary_dim={rope.rotary_dim}: needs at least 4")
    if kind == "llama3" and rope.high_freq_factor <= rope.low_freq_factor:
        raise ConfigError(
            f"rope.high_freq_factor={rope.high_freq_factor}: must be above "
            f"low_freq_factor={rope.low_freq_factor}"
        )
    if kind == "yarn" and rope.theta <= 1:
        raise ConfigError(f"rope.theta={rope.theta}: must be above 1")
    if kind == "longrope" and sizes != {half}:
        raise ConfigError(f"rope.short_factor, long_factor: must hold {half} numbers, not {sorted(sizes)}")
