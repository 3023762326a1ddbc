"""Linear layers for many rows: the product is cuBLAS's, the norm before and the activation after ours."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from builders.kernels.call import Call, Config
from builders.kernels.linear import Linear
from builders.kernels.norm import ACTIVATION_CONFIGS, NORM_CONFIGS, activation, norm

WIDE = Config(blocks={"WIDE": 1})


def is_wide(config: Config) -> bool:
    """Whether it is of this file."""
    return "WIDE" in config.blocks


def adds_up(layer: Linear) -> bool:
    """Whether the product is added to the residual where that lies: copying it first costs a pass over it."""
    return layer.bias is None and layer.activation is None


@dataclass(frozen=True, kw_only=True)
class Product:
    """out = x · weightᵀ and what is added to it, by cuBLAS."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    residual: Tensor | None
    out: Tensor

    @staticmethod
    def do(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor) -> None:
        """What is added is where the sums begin."""
        starts = [term for term in (bias, residual) if term is not None]
        if starts:
            torch.addmm(starts[0], x, weight.t(), out=out)
        else:
            torch.mm(x, weight.t(), out=out)
        for term in starts[1:]:
            out.add_(term)


@dataclass(frozen=True, kw_only=True)
class Sum:
    """out += residual, where an activation comes before."""

    residual: Tensor
    out: Tensor

    @staticmethod
    def do(residual: Tensor, out: Tensor) -> None:
        out.add_(residual)


Work = Call | Product | Sum


def wide(x: Tensor, layer: Linear, residual: Tensor | None, out: Tensor, *, overlap: bool) -> list[Work]:
    """All of one layer, in order."""
    work, product, late = list[Work](), out, layer.activation is not None
    if layer.norm is not None:
        normed = torch.empty_like(x)
        work += norm(x, layer.norm, replace(NORM_CONFIGS[0], overlap=overlap), out=normed)
        x = normed
    if late:
        product = out.new_empty(len(x), layer.weight.shape[0])
    first = None if late else residual
    work.append(Product(x=x, weight=layer.weight, bias=layer.bias, residual=first, out=product))
    if layer.activation is not None:
        config = replace(ACTIVATION_CONFIGS[0], overlap=overlap)
        work += activation(product, layer.activation, layer.gated, config, out=out)
    return [*work, Sum(residual=residual, out=out)] if late and residual is not None else work
