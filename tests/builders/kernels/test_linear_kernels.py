"""Linear layers with their neighbours, interpreted, beside plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from builders import ops
from builders.kernels.call import Config, Runner
from builders.kernels.linear import Linear, linear, linear_configs, scratch_size
from builders.kernels.norm import Norm
from builders.spec import Activation, NormKind
from tests.builders.kernels.scratch import scratch_of

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@dataclass(frozen=True, kw_only=True)
class Case:
    """A layer and its neighbours; `n` is the width of y, `blocks` the config."""

    blocks: str
    dtype: torch.dtype = BF16
    rows: int = 1
    n: int = 8
    k: int = 128
    norm: NormKind | None = None
    shift: bool = False
    bias: bool = False
    activation: Activation | None = None
    gated: bool = False
    residual: bool = False


GEMV = {
    "plain": Case(blocks="BLOCK_N=4 BLOCK_K=32 DEPTH=2 SPLIT=1"),
    "rms gated": Case(
        blocks="BLOCK_N=4 BLOCK_K=32 DEPTH=3 SPLIT=1", norm="rmsnorm", activation="silu", gated=True
    ),
    "rms split, odd": Case(
        blocks="BLOCK_N=4 BLOCK_K=32 DEPTH=1 SPLIT=2", n=7, k=75, norm="rmsnorm", residual=True, dtype=FP16
    ),
    "layer, odd": Case(
        blocks="BLOCK_N=4 BLOCK_K=64 DEPTH=4 SPLIT=1", n=5, k=90, norm="layernorm", shift=True, bias=True,
        activation="gelu_tanh", dtype=FP32,
    ),
    "layer1p split gated": Case(
        blocks="BLOCK_N=8 BLOCK_K=32 DEPTH=2 SPLIT=2", n=9, k=130, norm="layernorm1p", shift=True, bias=True,
        activation="relu2", gated=True, residual=True,
    ),
    "bias and residual": Case(blocks="BLOCK_N=2 BLOCK_K=64 DEPTH=1 SPLIT=1", bias=True, residual=True),
    "gelu": Case(blocks="BLOCK_N=1 BLOCK_K=128 DEPTH=1 SPLIT=1", bias=True, activation="gelu", dtype=FP32),
    "more splits than work": Case(blocks="BLOCK_N=4 BLOCK_K=64 DEPTH=1 SPLIT=4", k=100, bias=True),
}  # fmt: skip

DOT = {
    "plain": Case(blocks="BLOCK_M=16 BLOCK_N=16 BLOCK_K=32 DEPTH=2 SPLIT=1", rows=16, n=16),
    "rms gated": Case(
        blocks="BLOCK_M=16 BLOCK_N=16 BLOCK_K=64 DEPTH=2 SPLIT=1", rows=3, n=20, norm="rmsnorm",
        activation="silu", gated=True,
    ),
    "rms, half": Case(
        blocks="BLOCK_M=16 BLOCK_N=16 BLOCK_K=64 DEPTH=2 SPLIT=1", rows=2, norm="rmsnorm", dtype=FP16,
        residual=True,
    ),
    "rms split, odd": Case(
        blocks="BLOCK_M=16 BLOCK_N=16 BLOCK_K=32 DEPTH=2 SPLIT=2", rows=5, n=19, k=75, norm="rmsnorm",
        residual=True,
    ),
    "layer, odd": Case(
        blocks="BLOCK_M=16 BLOCK_N=32 BLOCK_K=64 DEPTH=2 SPLIT=1", rows=7, n=21, k=90, norm="layernorm",
        shift=True, bias=True, activation="gelu", dtype=FP32,
    ),
    "layer1p split gated": Case(
        blocks="BLOCK_M=32 BLOCK_N=16 BLOCK_K=32 DEPTH=2 SPLIT=4", rows=17, n=24, k=130, norm="layernorm1p",
        shift=True, bias=True, activation="relu", gated=True, residual=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "case", [*GEMV.values(), *DOT.values()], ids=[*GEMV, *(f"dot {name}" for name in DOT)]
)
def test_linear(case: Case, run: Runner, assert_near: Callable[[Tensor, Tensor], None]) -> None:
    torch.manual_seed(0)
    x, layer, residual = made(case)
    config = Config(blocks={name: int(size) for name, size in (b.split("=") for b in case.blocks.split())})
    out = torch.full((case.rows, case.n), float("nan"), dtype=case.dtype)
    scratch = scratch_of(scratch_size(layer, config))
    calls = linear(x, layer, config, out=out, residual=residual, scratch=scratch)
    run(calls)
    assert_near(out, expected(x, layer, residual))
    assert not scratch.counters.any()


def made(case: Case) -> tuple[Tensor, Linear, Tensor | None]:
    """x, a layer of it, and what is added after."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape).to(case.dtype)

    rows = case.n * (1 + case.gated)
    shift = normal(case.k) if case.shift else None
    norm = Norm(kind=case.norm, eps=1e-5, weight=normal(case.k), bias=shift) if case.norm else None
    layer = Linear(
        weight=(torch.randn(rows, case.k) / case.k**0.5).to(case.dtype),
        bias=normal(rows) if case.bias else None,
        norm=norm,
        activation=case.activation,
        gated=case.gated,
    )
    # A mean far from zero, so that a norm that forgets it is seen.
    return normal(case.rows, case.k) + 1, layer, normal(case.rows, case.n) if case.residual else None


def expected(x: Tensor, layer: Linear, residual: Tensor | None) -> Tensor:
    """In float32."""
    y = F.linear(normed(x.float(), layer.norm), layer.weight.float(), wide(layer.bias))
    if layer.activation:
        y = ops.act(y, layer.activation, layer.gated)
    return y if residual is None else y + residual.float()


def normed(x: Tensor, norm: Norm | None) -> Tensor:
    """What `Norm` of builders/layers.py computes."""
    if norm is None:
        return x
    if norm.kind == "rmsnorm":
        return F.rms_norm(x, x.shape[1:], norm.weight.float(), norm.eps)
    gain = norm.weight.float() + (norm.kind == "layernorm1p")
    return F.layer_norm(x, x.shape[1:], gain, wide(norm.bias), norm.eps)


def wide(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float()


def test_counters_serve_one_launch_after_another(run: Runner) -> None:
    case = GEMV["rms split, odd"]
    torch.manual_seed(0)
    x, layer, _ = made(case)
    config = Config(blocks={"BLOCK_N": 4, "BLOCK_K": 32, "DEPTH": 1, "SPLIT": 2})
    scratch = scratch_of(scratch_size(layer, config))
    first, second = torch.zeros(1, case.n, dtype=FP16), torch.zeros(1, case.n, dtype=FP16)
    run(
        linear(x, layer, config, out=first, scratch=scratch)
        + linear(x, layer, config, out=second, scratch=scratch)
    )
    assert first.any()
    assert torch.equal(first, second)


@pytest.mark.parametrize("rows", [1, 2, 16, 17, 64])
@pytest.mark.parametrize(("width", "size_in"), [(6144, 4096), (4096, 14336), (4096, 4100)])
def test_every_layer_has_candidates(rows: int, width: int, size_in: int) -> None:
    layer = Linear(weight=torch.empty(width, size_in, device="meta"))
    configs = linear_configs(rows, layer)
    assert len(configs) >= 10
    assert all(config.blocks.get("BLOCK_M", 1) >= rows for config in configs)
