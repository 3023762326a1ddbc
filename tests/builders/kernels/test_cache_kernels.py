"""Rotation and the write to the paged cache, interpreted, beside plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from builders.kernels.cache import Paged, rotate, rotate_and_write, write
from builders.kernels.call import Config, Runner
from builders.ops import rotated
from tests.builders.kernels.steps import BLOCK, chunks_of, paged


@dataclass(frozen=True, kw_only=True)
class Case:
    """Packed heads; `half` of the rotated columns."""

    heads: int
    kv_heads: int
    dim: int
    half: int
    clip: float | None = None
    dtype: torch.dtype = torch.bfloat16
    cached: torch.dtype | None = None
    in_place: bool = False
    whole: bool = False
    """k and v are wanted beside q."""


CASES = {
    "whole rotary, GQA": Case(heads=4, kv_heads=2, dim=64, half=32),
    "partial rotary, in place": Case(
        heads=3, kv_heads=1, dim=80, half=16, in_place=True, dtype=torch.float16
    ),
    "odd rotary, clipped": Case(heads=2, kv_heads=2, dim=24, half=5, clip=0.7, dtype=torch.float32),
    "no rotary, clipped": Case(heads=6, kv_heads=1, dim=128, half=0, clip=0.5),
    "8 bits": Case(heads=4, kv_heads=2, dim=64, half=32, cached=torch.float8_e4m3fn),
    "beside q, part rotated, clipped": Case(heads=3, kv_heads=2, dim=80, half=16, clip=0.6, whole=True),
    "beside q, in place": Case(heads=4, kv_heads=1, dim=64, half=32, in_place=True, whole=True),
    "beside q, no rotary": Case(heads=2, kv_heads=2, dim=24, half=0, dtype=torch.float32, whole=True),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_rotate_and_write(case: Case, run: Runner, assert_near: Callable[[Tensor, Tensor], None]) -> None:
    torch.manual_seed(0)
    scaled = case.cached is not None
    cache = paged(
        chunks_of((0, 2), (14, 3)),
        case.kv_heads,
        case.dim,
        case.cached or case.dtype,
        padding=2,
        scaled=scaled,
    )
    tokens = cache.positions.shape[0]
    qkv = torch.randn(tokens, (case.heads + 2 * case.kv_heads) * case.dim).to(case.dtype)
    angles = (torch.rand(tokens, case.half), torch.rand(tokens, case.half)) if case.half else None
    q, k, v = separated(qkv, angles, case)
    expected = torch.cat([q, k, v], 1) if case.whole else q
    k, v = written(cache.k, k, cache.k_scale, cache), written(cache.v, v, cache.v_scale, cache)
    out = qkv.unflatten(1, (-1, case.dim))[:, : expected.shape[1]]
    out = out if case.in_place else torch.empty(out.shape, dtype=out.dtype)
    config = Config(blocks={"BLOCK_H": 4}, warps=1)
    run(rotate_and_write(qkv, angles, cache, config, out=out, clip=case.clip))
    assert_near(out, expected)
    assert_near(cache.k, k)
    assert_near(cache.v, v)


def separated(qkv: Tensor, angles: tuple[Tensor, Tensor] | None, case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v [T, heads, D] in float32: clipped, then q and k rotated."""
    wide = qkv.float() if case.clip is None else qkv.float().clamp(-case.clip, case.clip)
    packed = wide.unflatten(1, (-1, case.dim))
    q, k, v = packed.split([case.heads, case.kv_heads, case.kv_heads], dim=1)
    if angles is None:
        return q, k, v
    return rotated(q, *angles), rotated(k, *angles), v


def written(part: Tensor, new: Tensor, scale: Tensor | None, cache: Paged) -> Tensor:
    """The cache's keys or values after the real tokens have come to their slots."""
    after = part.clone()
    for token, (position, sequence) in enumerate(
        zip(cache.positions.tolist(), cache.sequences.tolist(), strict=True)
    ):
        if position >= 0:
            quantum = 1.0 if scale is None else scale.item()
            page = cache.block_table[sequence, position // BLOCK]
            after[page, position % BLOCK] = (new[token] / quantum).to(part.dtype)
    return after


@pytest.mark.parametrize("half", [16, 12, 5])
def test_rotate(half: int, run: Runner, assert_near: Callable[[Tensor, Tensor], None]) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 7 * 32).to(torch.bfloat16).unflatten(1, (7, 32))[:, 1:6]
    angles = torch.rand(3, half), torch.rand(3, half)
    out = torch.empty(3, 5, 32, dtype=x.dtype)
    run(rotate(x, angles, Config(blocks={"BLOCK_H": 4}), out=out))
    assert_near(out, rotated(x.float(), *angles))


@pytest.mark.parametrize("cached", [torch.float16, torch.float8_e4m3fn])
def test_write(cached: torch.dtype, run: Runner, assert_near: Callable[[Tensor, Tensor], None]) -> None:
    torch.manual_seed(0)
    scaled = cached is torch.float8_e4m3fn
    cache = paged(chunks_of((0, 2), (14, 3)), 3, 24, cached, padding=2, scaled=scaled)
    packed = torch.randn(cache.positions.shape[0], 8, 24).to(torch.float16)
    k, v = packed[:, 1:4], packed[:, 5:]
    expected_k, expected_v = (
        written(cache.k, k, cache.k_scale, cache),
        written(cache.v, v, cache.v_scale, cache),
    )
    run(write(k, v, cache, Config(blocks={})))
    assert_near(cache.k, expected_k)
    assert_near(cache.v, expected_v)
