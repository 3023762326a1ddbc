"""Linear layers for many rows: the product is cuBLAS's, the norm before and the activation after ours."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from builders.kernels.call import Call, Config, Runner
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
class Wide:
    """One layer on its way: launches, the product, launches."""

    before: list[Call]
    x: Tensor
    layer: Linear
    product: Tensor
    after: list[Call]
    residual: Tensor | None
    out: Tensor

    @staticmethod
    def of(x: Tensor, layer: Linear, residual: Tensor | None, out: Tensor, *, overlap: bool) -> Wide:
        """Everything but the work."""
        before, after, normed, product = list[Call](), list[Call](), x, out
        if layer.norm is not None:
            normed = torch.empty_like(x)
            before = norm(x, layer.norm, replace(NORM_CONFIGS[0], overlap=overlap), out=normed)
        if layer.activation is not None:
            product = out.new_empty(len(x), layer.weight.shape[0])
            config = replace(ACTIVATION_CONFIGS[0], overlap=overlap)
            after = activation(product, layer.activation, layer.gated, config, out=out)
        return Wide(
            before=before, x=normed, layer=layer, product=product, after=after, residual=residual, out=out
        )

    def run(self, runner: Runner) -> None:
        """The residual is where the sums begin, unless something comes in between."""
        runner(self.before)
        bias, weight = self.layer.bias, self.layer.weight.t()
        starts = [term for term in (bias, self.residual if not self.after else None) if term is not None]
        if starts:
            torch.addmm(starts[0], self.x, weight, out=self.product)
        else:
            torch.mm(self.x, weight, out=self.product)
        for term in starts[1:]:
            self.product.add_(term)
        runner(self.after)
        if self.after and self.residual is not None:
            self.out.add_(self.residual)
