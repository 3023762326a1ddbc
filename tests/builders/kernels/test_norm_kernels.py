"""Normalization and activations, interpreted, beside plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from builders import ops
from builders.kernels.call import Config, Runner
from builders.kernels.norm import Norm, activation, norm
from builders.spec import Activation, NormKind
from tests.builders.kernels.test_linear_kernels import normed

Near = Callable[[Tensor, Tensor], None]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", get_args(NormKind))
def test_norm(kind: NormKind, dtype: torch.dtype, run: Runner, assert_near: Near) -> None:
    torch.manual_seed(0)
    wide = (torch.randn(3, 120) + 1).to(dtype)
    x = wide[:, :100]
    shift = None if kind == "rmsnorm" else torch.randn(100).to(dtype)
    parameters = Norm(kind=kind, eps=1e-5, weight=torch.randn(100).to(dtype), bias=shift)
    out = torch.empty(3, 100, dtype=dtype)
    run(norm(x, parameters, Config(blocks={}), out=out))
    assert_near(out, normed(x.float(), parameters))


def test_norm_of_a_sum(run: Runner, assert_near: Near) -> None:
    torch.manual_seed(0)
    x, add = torch.randn(2, 3, 64).to(torch.bfloat16)
    parameters = Norm(kind="rmsnorm", eps=1e-5, weight=torch.randn(64).to(torch.bfloat16))
    out, total = torch.empty_like(x), torch.empty_like(x)
    run(norm(x, parameters, Config(blocks={}), out=out, add=add, total=total))
    assert torch.equal(total, x + add)
    assert_near(out, normed((x + add).float(), parameters))


def test_norm_of_heads(run: Runner, assert_near: Near) -> None:
    torch.manual_seed(0)
    heads = torch.randn(3, 5 * 24).unflatten(1, (5, 24))[:, 1:4]
    parameters = Norm(kind="rmsnorm", eps=1e-5, weight=torch.randn(24))
    out = torch.empty(3, 3, 24)
    run(norm(heads, parameters, Config(blocks={}), out=out))
    assert_near(out, normed(heads.flatten(0, 1), parameters).unflatten(0, (3, 3)))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", get_args(Activation))
def test_activation(kind: Activation, gated: bool, run: Runner, assert_near: Near) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 90 * (1 + gated)) * 3
    out = torch.empty(2, 90)
    run(activation(x, kind, gated, Config(blocks={"BLOCK": 64}), out=out))
    assert_near(out, ops.act(x, kind, gated))
