"""Launcher and candidates of linear layers for few rows, with their neighbours fused."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from builders.kernels.call import Call, Config, Constant, call, cdiv, power_of_two
from builders.kernels.norm import Norm
from builders.spec import Activation

MAX_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Linear:
    """y = act(norm(x) · weightᵀ + bias) + residual."""

    weight: Tensor
    """[out, in]; where gated, the gate's rows and then as many that are multiplied with it."""
    bias: Tensor | None = None
    norm: Norm | None = None
    activation: Activation | None = None
    gated: bool = False

    @property
    def width(self) -> int:
        """Columns of y."""
        return self.weight.shape[0] // (2 if self.gated else 1)


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """Where programs that share a result leave their parts; any kernels that run in order share one."""

    partial: Tensor
    """float32, flat."""
    counters: Tensor
    """int32, flat; zero between launches."""


@dataclass(frozen=True, kw_only=True)
class ScratchSize:
    """How much a launch needs."""

    partial: int = 0
    counters: int = 0

    def __or__(self, other: ScratchSize) -> ScratchSize:
        return ScratchSize(
            partial=max(self.partial, other.partial), counters=max(self.counters, other.counters)
        )


def linear(
    x: Tensor,
    layer: Linear,
    config: Config,
    *,
    out: Tensor,
    residual: Tensor | None = None,
    scratch: Scratch | None = None,
) -> list[Call]:
    """out [rows, width] for x [rows, in], both contiguous; one row or several, as the config says."""
    shared = scratch if config.blocks["SPLIT"] > 1 else None
    args = (
        out,
        x,
        layer.weight,
        layer.bias,
        residual,
        layer.norm.weight if layer.norm else None,
        layer.norm.bias if layer.norm else None,
        shared.partial if shared else None,
        shared.counters if shared else None,
        float(layer.norm.eps if layer.norm else 0.0),
    )
    grid = (cdiv(layer.width, config.blocks["BLOCK_N"]), config.blocks["SPLIT"])
    if "BLOCK_M" in config.blocks:
        return [call("linear.dot", (*args, x.shape[0]), _constants(layer), grid, config)]
    return [call("linear.gemv", args, _constants(layer), grid, config)]


def scratch_size(layer: Linear, config: Config) -> ScratchSize:
    """What `linear` needs of the scratch."""
    blocks = config.blocks
    if blocks["SPLIT"] == 1:
        return ScratchSize()
    return ScratchSize(
        partial=blocks["SPLIT"] * blocks.get("BLOCK_M", 1) * layer.weight.shape[0],
        counters=cdiv(layer.width, blocks["BLOCK_N"]),
    )


def _constants(layer: Linear) -> dict[str, Constant]:
    kind = layer.norm.kind if layer.norm else None
    return {
        "N": layer.width,
        "K": layer.weight.shape[1],
        "NORM": "none" if kind is None else "rms" if kind == "rmsnorm" else "layer",
        "ONE_PLUS": kind == "layernorm1p",
        "ACT": layer.activation or "none",
        "GATED": layer.gated,
    }


def linear_configs(rows: int, layer: Linear, *, overlap: bool = False) -> tuple[Config, ...]:
    """The candidates for a number of rows; those too large for a device fail to compile for it."""
    if rows == 1:
        return tuple(_gemv(*sizes, overlap) for sizes in _GEMV if _fits(layer, sizes))
    block_m = max(16, power_of_two(rows))
    return tuple(_dot(block_m, *sizes, overlap) for sizes in (_DOT if block_m < 64 else _TALL_DOT))


def _fits(layer: Linear, sizes: tuple[int, ...]) -> bool:
    """Whether the tiles of a step are worth it: not over a quarter beyond the row, none without work."""
    _, block_k, _, split, _ = sizes
    steps = cdiv(layer.weight.shape[1], block_k)
    return steps * block_k * 4 <= layer.weight.shape[1] * 5 and steps >= split and steps <= 32 * split


def _gemv(block_n: int, block_k: int, depth: int, split: int, warps: int, overlap: bool) -> Config:
    blocks = {"BLOCK_N": block_n, "BLOCK_K": block_k, "DEPTH": depth, "SPLIT": split}
    return Config(blocks=blocks, warps=warps, stages=1, overlap=overlap)


def _dot(
    block_m: int, block_n: int, block_k: int, split: int, depth: int, warps: int, overlap: bool
) -> Config:
    blocks = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "SPLIT": split, "DEPTH": depth}
    return Config(blocks=blocks, warps=warps, stages=depth, overlap=overlap)


_GEMV = (
    # BLOCK_N, BLOCK_K, DEPTH, SPLIT, warps
    (4, 1024, 1, 1, 4),
    (4, 1024, 2, 1, 4),
    (4, 1024, 4, 1, 4),
    (8, 1024, 1, 1, 4),
    (8, 1024, 2, 1, 4),
    (2, 1024, 2, 1, 4),
    (2, 1024, 4, 1, 4),
    (1, 1024, 4, 1, 4),
    (4, 512, 4, 1, 2),
    (8, 512, 2, 1, 2),
    (8, 512, 4, 1, 4),
    (4, 2048, 2, 1, 8),
    (2, 2048, 4, 1, 8),
    (8, 2048, 1, 1, 8),
    (8, 256, 4, 1, 1),
    (4, 1024, 2, 2, 4),
    (8, 1024, 2, 2, 4),
    (8, 1024, 2, 4, 4),
)

_DOT = (
    # BLOCK_N, BLOCK_K, SPLIT, DEPTH, warps
    (16, 256, 1, 4, 4),
    (16, 512, 1, 3, 4),
    (32, 128, 1, 5, 4),
    (32, 256, 1, 4, 4),
    (32, 256, 2, 4, 4),
    (32, 256, 4, 3, 4),
    (64, 128, 1, 4, 4),
    (64, 128, 2, 4, 4),
    (64, 128, 4, 4, 4),
    (64, 128, 8, 4, 4),
    (64, 256, 2, 3, 4),
    (64, 64, 4, 6, 4),
    (128, 64, 2, 5, 4),
    (128, 64, 4, 5, 8),
    (128, 128, 4, 3, 8),
)

_TALL_DOT = (
    (64, 64, 1, 5, 4),
    (64, 64, 2, 5, 4),
    (64, 64, 4, 5, 4),
    (64, 128, 1, 4, 4),
    (64, 128, 2, 4, 4),
    (64, 128, 4, 4, 4),
    (64, 128, 8, 4, 4),
    (128, 64, 1, 4, 4),
    (128, 64, 2, 4, 4),
    (128, 64, 4, 4, 4),
    (128, 64, 8, 4, 8),
    (128, 128, 2, 3, 8),
    (128, 128, 4, 3, 8),
)
