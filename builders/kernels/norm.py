"""Launchers of row normalization and of activations."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from builders.kernels.call import Call, Config, Constant, call, cdiv, power_of_two
from builders.spec import NormKind

NORM_CONFIGS = tuple(Config(blocks={}, warps=warps) for warps in (4, 8, 16))
ACTIVATION_CONFIGS = tuple(
    Config(blocks={"BLOCK": block}, warps=warps) for block, warps in ((1024, 4), (2048, 4), (4096, 8))
)


@dataclass(frozen=True, kw_only=True)
class Norm:
    """A normalization and its parameters, on its own or before a linear layer."""

    kind: NormKind
    eps: float
    weight: Tensor
    bias: Tensor | None = None


def norm(
    x: Tensor,
    norm: Norm,
    config: Config,
    *,
    out: Tensor,
    add: Tensor | None = None,
    total: Tensor | None = None,
) -> list[Call]:
    """out = norm(x + add), and total = x + add where there is something to add; rows [T, H].

    Or every head of x [T, heads, D] on its own. x may be part of something wider, the others are contiguous.
    """
    width, heads = x.shape[-1], x.shape[1] if x.dim() == 3 else 1
    constants: dict[str, Constant] = {
        "WIDTH": width,
        "HEADS": heads,
        "STRIDE": x.stride(0),
        "HEAD_STRIDE": x.stride(1) if heads > 1 else 0,
        "CENTERED": norm.kind != "rmsnorm",
        "ONE_PLUS": norm.kind == "layernorm1p",
        "BLOCK": power_of_two(width),
    }
    args = (out, x, add, total, norm.weight, norm.bias, float(norm.eps))
    return [call("norm.norm", args, constants, (x.shape[0] * heads,), config)]


def activation(x: Tensor, kind: str, gated: bool, config: Config, *, out: Tensor) -> list[Call]:
    """out [T, width] = ops.act(x)."""
    rows, width = out.shape
    constants: dict[str, Constant] = {"WIDTH": width, "ACT": kind, "GATED": gated}
    grid = (rows, cdiv(width, config.blocks["BLOCK"]))
    return [call("norm.activation", (out, x), constants, grid, config)]
