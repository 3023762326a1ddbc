"""Attention over the paged cache, interpreted, beside the operator of builders/ops.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from builders.kernels.attention import (
    TILED_CONFIGS,
    Attention,
    Chunk,
    Packed,
    decode,
    decode_configs,
    decode_scratch,
    max_tiles,
    tile_table,
    tiled,
)
from builders.kernels.cache import Paged
from builders.kernels.call import Config, Runner
from builders.ops import rotated, write
from tests.builders.kernels.scratch import scratch_of
from tests.builders.kernels.steps import attended, chunks_of, paged
from tests.builders.kernels.workers import interpret_here, pool

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@dataclass(frozen=True, kw_only=True)
class Case:
    """Heads, and how the work is cut."""

    heads: int
    kv_heads: int
    dim: int
    splits: int = 1
    joined: bool = True
    block_s: int = 16
    window: int = 0
    sloped: bool = False
    dtype: torch.dtype = BF16
    cached: torch.dtype | None = None
    half: int = 0
    clip: float | None = None

    def attention(self) -> Attention:
        slopes = torch.rand(self.heads) if self.sloped else None
        return Attention(heads=self.heads, scale=self.dim**-0.5, window=self.window, slopes=slopes)


DECODE = {
    "GQA": Case(heads=8, kv_heads=2, dim=64),
    "MHA, ALiBi, not joined": Case(
        heads=2, kv_heads=2, dim=96, splits=2, joined=False, sloped=True, dtype=FP16
    ),
    "MQA, window": Case(heads=5, kv_heads=1, dim=80, splits=4, window=24),
    "more splits than tiles": Case(heads=4, kv_heads=2, dim=128, splits=16, dtype=FP32),
    "window of one tile, not joined": Case(
        heads=4, kv_heads=2, dim=128, splits=4, joined=False, window=5, dtype=FP32
    ),
    "8 bits": Case(heads=4, kv_heads=2, dim=64, splits=2, block_s=32, cached=torch.float8_e4m3fn),
}


@pytest.mark.parametrize("case", DECODE.values(), ids=DECODE)
def test_decode(case: Case, run: Runner, assert_near: Callable[[Tensor, Tensor], None]) -> None:
    torch.manual_seed(0)
    chunks = chunks_of((0, 1), (70, 1), (14, 3), (31, 1))
    cache = paged(
        chunks, case.kv_heads, case.dim, case.cached or case.dtype, padding=2, scaled=case.cached is not None
    )
    q, computed = packed_q(cache.positions.shape[0], case), case.attention()
    blocks = {"BLOCK_S": case.block_s, "SPLITS": case.splits, "JOINED": int(case.joined), "DEPTH": 1}
    blocks["EARLY"] = 0
    config = Config(blocks=blocks)
    out = torch.full(q.shape, float("nan"), dtype=case.dtype)
    scratch = scratch_of(decode_scratch(q.shape[0], case.heads, case.kv_heads, case.dim, config))
    run(decode(q, computed, cache, config, out=out, scratch=scratch))
    assert_near(out, attended(q, cache, computed))
    assert not scratch.counters.any()


PACKED = {
    "GQA": Case(heads=8, kv_heads=2, dim=64, half=32),
    "GQA, not joined": Case(heads=4, kv_heads=2, dim=64, half=32, splits=4, joined=False, dtype=FP16),
    "MHA, ALiBi": Case(heads=2, kv_heads=2, dim=96, splits=2, sloped=True, dtype=FP16),
    "MQA, window, part rotated, clipped": Case(
        heads=5, kv_heads=1, dim=80, splits=4, window=24, half=10, clip=0.7
    ),
    "window of one tile, not joined": Case(
        heads=4, kv_heads=2, dim=128, splits=4, joined=False, window=5, half=64, dtype=FP32
    ),
    "window of the token itself": Case(heads=2, kv_heads=1, dim=64, splits=2, window=1, half=32),
    "8 bits": Case(heads=4, kv_heads=2, dim=64, splits=2, block_s=32, cached=torch.float8_e4m3fn, half=32),
}


@pytest.mark.parametrize("early", [0, 1])
@pytest.mark.parametrize("case", PACKED.values(), ids=PACKED)
def test_decode_packed(
    case: Case, early: int, run: Runner, assert_near: Callable[[Tensor, Tensor], None]
) -> None:
    torch.manual_seed(0)
    chunks = chunks_of((0, 1), (70, 1), (16, 1), (31, 1))
    cache = paged(
        chunks, case.kv_heads, case.dim, case.cached or case.dtype, padding=2, scaled=case.cached is not None
    )
    tokens, computed = cache.positions.shape[0], case.attention()
    qkv = torch.randn(tokens, (case.heads + 2 * case.kv_heads) * case.dim).to(case.dtype)
    angles = (torch.rand(tokens, case.half), torch.rand(tokens, case.half)) if case.half else None
    packed = Packed(angles=angles, clip=case.clip)
    q, after = rotated_and_written(qkv, packed, cache, case.heads)
    blocks = {"BLOCK_S": case.block_s, "SPLITS": case.splits, "JOINED": int(case.joined), "DEPTH": 1}
    blocks["EARLY"] = early
    out = torch.full(q.shape, float("nan"), dtype=case.dtype)
    scratch = scratch_of(decode_scratch(tokens, case.heads, case.kv_heads, case.dim, Config(blocks=blocks)))
    run(decode(qkv, computed, cache, Config(blocks=blocks), out=out, scratch=scratch, packed=packed))
    assert_near(out, attended(q, after, computed))
    assert_near(cache.k, after.k.float())
    assert_near(cache.v, after.v.float())
    assert not scratch.counters.any()


def rotated_and_written(qkv: Tensor, packed: Packed, cache: Paged, heads: int) -> tuple[Tensor, Paged]:
    """q, and the cache with the new k and v of the tokens that are no padding."""
    real, (kv_heads, dim) = cache.positions >= 0, cache.k.shape[2:]
    wide = qkv.float() if packed.clip is None else qkv.float().clamp(-packed.clip, packed.clip)
    q, k, v = wide.unflatten(1, (-1, dim)).split([heads, kv_heads, kv_heads], dim=1)
    if packed.angles is not None:
        q, k = rotated(q, *packed.angles), rotated(k, *packed.angles)
    after = replace(cache, k=cache.k.clone(), v=cache.v.clone())
    place = cache.positions[real], cache.sequences[real], cache.block_table
    write(k[real], v[real], after.k, after.v, *place, cache.k_scale, cache.v_scale)
    return q.to(qkv.dtype), after


TILED = {
    "GQA": Case(heads=4, kv_heads=2, dim=64),
    "MHA, ALiBi": Case(heads=2, kv_heads=2, dim=80, block_s=32, sloped=True, dtype=FP16),
    "MQA, window": Case(heads=3, kv_heads=1, dim=128, window=12, dtype=FP32),
    "8 bits": Case(heads=2, kv_heads=1, dim=96, block_s=32, cached=torch.float8_e4m3fn),
}


@pytest.mark.parametrize("case", TILED.values(), ids=TILED)
def test_tiled(case: Case, run: Runner, assert_near: Callable[[Tensor, Tensor], None]) -> None:
    torch.manual_seed(0)
    chunks = chunks_of((0, 17), (37, 20), (50, 1))
    cache = paged(
        chunks, case.kv_heads, case.dim, case.cached or case.dtype, padding=1, scaled=case.cached is not None
    )
    q, computed = packed_q(cache.positions.shape[0], case), case.attention()
    table = tile_table(chunks, 16)
    empty = [(0,) * 5] * (max_tiles(q.shape[0], len(chunks), 16) - len(table))
    tiles = torch.tensor(table + empty, dtype=torch.int32)
    out = torch.full(q.shape, 7.0, dtype=case.dtype)
    config = Config(blocks={"BLOCK_M": 16, "BLOCK_S": case.block_s, "DEPTH": 1})
    run(tiled(q, computed, cache, tiles, config, out=out))
    assert_near(out[:-1], attended(q, cache, computed)[:-1])
    assert out[-1].eq(7).all()


FRESH = {
    "GQA": Case(heads=4, kv_heads=2, dim=64),
    "MHA, ALiBi": Case(heads=2, kv_heads=2, dim=80, block_s=32, sloped=True, dtype=FP16),
    "MQA, window": Case(heads=3, kv_heads=1, dim=128, window=12, dtype=FP32),
    "window over what is cached": Case(heads=2, kv_heads=1, dim=64, window=70, dtype=FP32),
}


@pytest.mark.parametrize("case", FRESH.values(), ids=FRESH)
def test_tiled_reads_what_the_step_brings(
    case: Case, run: Runner, assert_near: Callable[[Tensor, Tensor], None]
) -> None:
    torch.manual_seed(0)
    chunks = chunks_of((0, 37), (37, 20), (64, 33), (50, 1))
    cache = paged(chunks, case.kv_heads, case.dim, case.dtype, padding=1)
    tokens, computed = cache.positions.shape[0], case.attention()
    qkv = torch.randn(tokens, case.heads + 2 * case.kv_heads, case.dim).to(case.dtype)
    q, k, v = qkv.split([case.heads, case.kv_heads, case.kv_heads], 1)
    places = cache.positions[:-1], cache.sequences[:-1], cache.block_table
    write(k[:-1], v[:-1], cache.k, cache.v, *places, None, None)
    expected = attended(q, cache, computed)
    for blocks, positions in zip(cache.block_table, starts_by_row(chunks), strict=True):
        forget(cache, blocks, positions)
    tiles = torch.tensor(tile_table(chunks, 16), dtype=torch.int32)
    config = Config(blocks={"BLOCK_M": 16, "BLOCK_S": case.block_s, "DEPTH": 1})
    out = torch.full(q.shape, float("nan"), dtype=case.dtype)
    run(tiled(qkv, computed, cache, tiles, config, out=out, fresh=True))
    assert_near(out[:-1], expected[:-1])


def test_rows_of_a_step_may_lie_far_apart(assert_near: Callable[[Tensor, Tensor], None]) -> None:
    """Further than 32 bits count; in a process that takes the memory of what it touches alone."""
    with pool(interpreted=True) as workers:
        assert_near(*workers.submit(attended_far_apart).result())


def attended_far_apart() -> tuple[Tensor, Tensor]:
    """What the kernel makes of nine tokens, and what it should."""
    tokens, stride, case = 9, 2**28, Case(heads=1, kv_heads=1, dim=16, dtype=FP16)
    chunks = chunks_of((0, tokens))
    cache = paged(chunks, case.kv_heads, case.dim, case.dtype)
    qkv = torch.empty(tokens * stride, dtype=FP16).as_strided((tokens, 3, case.dim), (stride, case.dim, 1))
    q, k, v = qkv.normal_().split(1, 1)
    write(k, v, cache.k, cache.v, cache.positions, cache.sequences, cache.block_table, None, None)
    expected = attended(q, cache, case.attention())
    tiles = torch.tensor(tile_table(chunks, 16), dtype=torch.int32)
    config = Config(blocks={"BLOCK_M": 16, "BLOCK_S": 16, "DEPTH": 1})
    out = torch.full(q.shape, float("nan"), dtype=FP16)
    interpret_here(tiled(qkv, case.attention(), cache, tiles, config, out=out, fresh=True))
    return out, expected


def starts_by_row(chunks: list[Chunk]) -> list[int]:
    """Of every row of the block table, the first position that the step brings."""
    return [chunk.position for chunk in sorted(chunks, key=lambda chunk: chunk.sequence)]


def forget(cache: Paged, blocks: Tensor, position: int) -> None:
    """Whoever reads the cache from there on gets no number."""
    size = cache.k.shape[1]
    slots = (blocks[:, None] * size + torch.arange(size)).flatten()[position:]
    for part in (cache.k, cache.v):
        part.flatten(0, 1)[slots] = float("nan")


def packed_q(tokens: int, case: Case) -> Tensor:
    """q [T, heads, D] as part of packed q, k and v."""
    qkv = torch.randn(tokens, (case.heads + 2 * case.kv_heads) * case.dim).to(case.dtype)
    return qkv[:, : case.heads * case.dim].unflatten(1, (case.heads, case.dim))


def test_tiles_cover_every_token_once() -> None:
    chunks = [
        Chunk(sequence=3, first=0, tokens=70, position=0),
        Chunk(sequence=1, first=70, tokens=1, position=900),
        Chunk(sequence=0, first=71, tokens=64, position=100),
    ]
    tiles = tile_table(chunks, 32)
    rows = sorted(
        (first + i, sequence, position + i, brought)
        for sequence, first, count, position, brought in tiles
        for i in range(count)
    )
    assert rows == [
        (chunk.first + i, chunk.sequence, chunk.position + i, chunk.position)
        for chunk in chunks
        for i in range(chunk.tokens)
    ]
    assert all(0 < count <= 32 for _, _, count, _, _ in tiles)
    assert tiles[0] == (1, 70, 1, 900, 900)
    assert len(tiles) <= max_tiles(135, 3, 32)


def test_tables_of_every_step_fit() -> None:
    worst = [Chunk(sequence=i, first=9 * i, tokens=9, position=0) for i in range(5)]
    assert len(tile_table(worst, 8)) == max_tiles(45, 5, 8) == 10


@pytest.mark.parametrize(
    ("tokens", "kv_heads", "longest", "splits"),
    [
        (1, 8, 4096, {8, 16, 32, 64}),
        (16, 8, 4096, {1, 2, 4, 8}),
        (256, 8, 4096, {1}),
        (1, 1, 256, {16}),
        (1, 8, 16, {1}),
    ],
)
def test_decode_candidates(tokens: int, kv_heads: int, longest: int, splits: set[int]) -> None:
    configs = decode_configs(tokens, kv_heads, longest)
    assert {config.blocks["SPLITS"] for config in configs} == splits
    assert not any(config.blocks["EARLY"] for config in configs)
    packed = decode_configs(tokens, kv_heads, longest, packed=True)
    assert len(set(map(repr, packed))) == len(packed) >= len(configs)
    assert any(config.blocks["EARLY"] for config in packed)


def test_tiled_candidates_are_for_matrix_units() -> None:
    assert all(config.blocks["BLOCK_M"] >= 16 for config in TILED_CONFIGS)
