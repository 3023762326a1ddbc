"""Linear layers for two to eight rows: which have candidates; on a device, beside plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from builders.kernels.call import Runner
from builders.kernels.direct import direct, direct_configs
from builders.kernels.linear import Linear

NARROW = [torch.bfloat16, torch.float16]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="Gluon has no interpreter")
@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("rows", [2, 5, 8])
@pytest.mark.parametrize("given", ["", "bias", "residual", "bias residual"])
def test_few(
    given: str, rows: int, dtype: torch.dtype, launch: Runner, assert_near: Callable[[Tensor, Tensor], None]
) -> None:
    torch.manual_seed(0)
    size_in, width = 2048, 96

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype)

    weight = normal(width, size_in) / size_in**0.5
    layer = Linear(weight=weight, bias=normal(width) if "bias" in given else None)
    x, residual = normal(rows, size_in), normal(rows, width) if "residual" in given else None
    bias = None if layer.bias is None else layer.bias.float()
    expected = F.linear(x.float(), weight.float(), bias) + (0.0 if residual is None else residual.float())
    configs = direct_configs(rows, layer)
    assert len(configs) == 5
    for config in configs:
        out = torch.full((rows, width), float("nan"), dtype=dtype)
        launch(direct(x, layer, config, out=out, residual=residual))
        assert_near(out, expected)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_what_has_candidates(dtype: torch.dtype) -> None:
    layer = Linear(weight=torch.empty(6144, 4096, dtype=dtype, device="meta"))
    assert len(direct_configs(2, layer)) == len(direct_configs(8, layer)) == 5
    assert not direct_configs(1, layer)
    assert not direct_configs(9, layer)
    assert not direct_configs(4, replace(layer, activation="silu"))
    assert not direct_configs(4, replace(layer, weight=layer.weight.float()))
    assert not direct_configs(4, replace(layer, weight=layer.weight[:6136]))
    assert not direct_configs(4, replace(layer, weight=layer.weight[:, :4092]))
    deep = Linear(weight=torch.empty(4096, 28672, dtype=dtype, device="meta"))
    assert {config.blocks["PARTS"] for config in direct_configs(4, deep)} == {4, 8}
    assert all(28672 // (c.blocks["PARTS"] * c.blocks["BLOCK_K"]) <= 56 for c in direct_configs(4, deep))
