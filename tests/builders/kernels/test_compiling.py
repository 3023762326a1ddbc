"""Kernels compiled for real, for GPUs that are not here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from builders.kernels.attention import (
    TILED_CONFIGS,
    Attention,
    Packed,
    decode,
    decode_configs,
    tiled,
)
from builders.kernels.cache import (
    PLAIN_WRITE_CONFIGS,
    ROTATE_CONFIGS,
    WRITE_CONFIGS,
    Paged,
    rotate,
    rotate_and_write,
    write,
)
from builders.kernels.call import Call, Config, Source
from builders.kernels.direct import direct, direct_configs
from builders.kernels.draw import Wishes, draw
from builders.kernels.embedding import EMBED_CONFIGS, embed
from builders.kernels.likeliest import LIKELIEST_CONFIG, likeliest
from builders.kernels.linear import Linear, Scratch, linear, linear_configs
from builders.kernels.moe import (
    COMBINE_CONFIGS,
    Experts,
    Routed,
    Sorted,
    combine,
    few_configs,
    few_down,
    few_up,
    grouped_configs,
    grouped_down,
    grouped_up,
    route,
    sort,
)
from builders.kernels.norm import ACTIVATION_CONFIGS, NORM_CONFIGS, Norm, activation, norm
from builders.kernels.parameters import takes
from builders.kernels.reduce import REDUCE_CONFIG, all_reduce, example_buffers
from tests.builders.kernels.workers import compiles, pool

CAPABILITIES = (80, 90, 120)


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


RMS = Norm(kind="rmsnorm", eps=1e-5, weight=empty(4096))
LAYER = Norm(kind="layernorm1p", eps=1e-5, weight=empty(4096), bias=empty(4096))
UP = Linear(weight=empty(28672, 4096), norm=RMS, activation="silu", gated=True)
FC = Linear(weight=empty(16384, 4096), bias=empty(16384), norm=LAYER, activation="gelu")
DOWN = Linear(weight=empty(4096, 14336))
SCRATCH = Scratch(partial=empty(1 << 20, dtype=torch.float32), counters=empty(1 << 10, dtype=torch.int32))
CACHE = Paged(
    k=empty(100, 32, 8, 128),
    v=empty(100, 32, 8, 128),
    block_table=empty(16, 64, dtype=torch.int64),
    positions=empty(16, dtype=torch.int64),
    sequences=empty(16, dtype=torch.int64),
)
NARROW = replace(
    CACHE,
    k=empty(100, 32, 8, 96, dtype=torch.float8_e4m3fn),
    v=empty(100, 32, 8, 96, dtype=torch.float8_e4m3fn),
    k_scale=empty(1, dtype=torch.float32),
    v_scale=empty(1, dtype=torch.float32),
)
ANGLES = (empty(16, 64, dtype=torch.float32), empty(16, 64, dtype=torch.float32))


def linear_calls(rows: int, layer: Linear, config: Config) -> list[Call]:
    y = empty(rows, layer.width)
    return linear(empty(rows, layer.weight.shape[1]), layer, config, out=y, residual=y, scratch=SCRATCH)


def calls() -> Iterator[Call]:
    """At least one candidate of every kernel."""
    for rows, layer in ((1, UP), (1, FC), (1, DOWN), (2, UP), (16, FC), (64, DOWN)):
        configs = linear_configs(rows, layer)
        yield from linear_calls(rows, layer, configs[0])
        if rows == 1 or not layer.gated:
            split = next(config for config in configs if config.blocks["SPLIT"] > 1)
            yield from linear_calls(rows, layer, split)
    q, out = empty(16, 32 * 128 + 2 * 8 * 128), empty(16, 32, 128)
    plain = Attention(heads=32, scale=0.1)
    sloped = Attention(heads=32, scale=0.1, window=100, slopes=empty(32, dtype=torch.float32))
    for config in decode_configs(16, 8, 64)[:9:2]:
        yield from decode(q, plain, CACHE, config, out=out, scratch=SCRATCH)
    for config in decode_configs(16, 8, 64, packed=True)[::5]:
        yield from decode(
            q, sloped, CACHE, config, out=out, scratch=SCRATCH, packed=Packed(angles=ANGLES, clip=8.0)
        )
    tiles = empty(4, 5, dtype=torch.int32)
    yield from tiled(q, sloped, CACHE, tiles, TILED_CONFIGS[-1], out=out)
    yield from tiled(q, plain, CACHE, tiles, TILED_CONFIGS[-1], out=out, fresh=True)
    yield from rotate_and_write(q, ANGLES, CACHE, WRITE_CONFIGS[0], out=out, clip=8.0)
    x = empty(16, 4096)
    yield from norm(x, LAYER, NORM_CONFIGS[0], out=x, add=x, total=x)
    yield from activation(empty(16, 28672), "gelu_tanh", True, ACTIVATION_CONFIGS[0], out=empty(16, 14336))


def other_calls() -> Iterator[Call]:
    """Embedding, attention's surroundings in models that norm q and k, and choosing."""
    ids, x = empty(16, dtype=torch.int64), empty(16, 4096)
    first = empty(1, dtype=torch.int64)
    yield from embed(
        ids, x, EMBED_CONFIGS[0], out=x, first=first, scale=2.0, positions=ids, position_weight=x
    )
    heads = empty(16, 8, 128)
    yield from norm(heads, replace(RMS, weight=empty(128)), NORM_CONFIGS[0], out=heads)
    yield from rotate(heads, ANGLES, ROTATE_CONFIGS[0], out=heads)
    yield from write(heads, heads, CACHE, PLAIN_WRITE_CONFIGS[0])
    reals, scores = empty(9, 7, dtype=torch.float64), empty(16, 128256, dtype=torch.float32)
    wishes = Wishes(reals=reals, integers=empty(9, 3, dtype=torch.int64))
    yield from draw(scores, ids, ids, wishes, out=ids, scaled=False)
    yield from draw(scores, ids, ids, wishes, out=ids, scaled=True)
    for rows in (scores, empty(16, 50304)[:, :50257]):
        yield from likeliest(rows, out=ids)


def direct_calls() -> Iterator[Call]:
    """Every candidate for a short row; for a long one, those that can be."""
    for layer in (replace(FC, norm=None, activation=None), DOWN):
        x, y = empty(5, layer.weight.shape[1]), empty(5, layer.width)
        for config in direct_configs(5, layer):
            yield from direct(x, layer, config, out=y, residual=y)


def moe_calls() -> Iterator[Call]:
    """Mixtral's experts."""
    x, hidden, parts = empty(64, 4096), empty(128, 14336), empty(128, 4096)
    experts = Experts(
        up=empty(8, 28672, 4096),
        down=empty(8, 4096, 14336),
        first=empty(1, dtype=torch.int64),
        top_k=2,
        activation="silu",
        gated=True,
    )
    routed = Routed(share=empty(64, 2, dtype=torch.float32), chosen=empty(64, 2, dtype=torch.int32))
    by_expert = Sorted(order=empty(128, dtype=torch.int32), tiles=empty(16, 3, dtype=torch.int32))
    up, down = few_configs(4096)[0], few_configs(14336)[0]
    yield from route(empty(64, 8), True, out=routed)
    yield from few_up(x, experts, routed, up, hidden=hidden)
    yield from few_down(hidden, experts, routed, down, out=x, residual=x)
    config = grouped_configs(128, 8)[0]
    yield from sort(routed, experts, 16, out=by_expert)
    yield from grouped_up(x, experts, by_expert, config, hidden=hidden)
    yield from grouped_down(hidden, experts, by_expert, config, parts=parts)
    yield from combine(parts, experts, routed, COMBINE_CONFIGS[0], out=x, residual=x)


def reducing_calls() -> Iterator[Call]:
    x = empty(2, 4096)
    yield from all_reduce(x, example_buffers(4), REDUCE_CONFIG, out=x, residual=x)


CALLS = [*calls(), *other_calls(), *direct_calls(), *moe_calls()]


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Source, int], str]]:
    with pool(interpreted=False, cache=tmp_path_factory.mktemp("compiled")) as workers:
        yield lambda source, capability: workers.submit(compiles, source, capability).result()


def name_of(call: Call) -> str:
    return " ".join([call.kernel, *(f"{name}={size}" for name, size in call.config.blocks.items())])


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("call", CALLS, ids=name_of)
def test_compiles(call: Call, capability: int, compiler: Callable[[Source, int], str]) -> None:
    assert compiler(call.source, capability) == ""


def test_eight_bit_caches(compiler: Callable[[Source, int], str]) -> None:
    q, out = empty(16, 4608), empty(16, 32, 96)
    early = next(config for config in decode_configs(64, 8, 64, packed=True) if config.blocks["EARLY"])
    for call in (
        *rotate_and_write(q, None, NARROW, WRITE_CONFIGS[0], out=out),
        *decode(q, Attention(heads=32, scale=0.1), NARROW, decode_configs(16, 8, 64)[0], out=out),
        *decode(
            q,
            Attention(heads=32, scale=0.1),
            NARROW,
            early,
            out=out,
            packed=Packed(angles=None),
        ),
    ):
        assert compiler(call.source, 90) == ""


def test_overlap_is_for_hopper_and_later(compiler: Callable[[Source, int], str]) -> None:
    q, out, x = empty(16, 6144), empty(16, 32, 128), empty(2, 14336)
    config = decode_configs(16, 8, 64, overlap=True)[0]
    for call in (
        *linear_calls(1, UP, linear_configs(1, UP, overlap=True)[0]),
        *linear_calls(2, UP, linear_configs(2, UP, overlap=True)[0]),
        *direct(x, DOWN, direct_configs(2, DOWN, overlap=True)[0], out=empty(2, 4096)),
        *decode(q, Attention(heads=32, scale=0.1), CACHE, config, out=out),
        *likeliest(x, out=q, config=replace(LIKELIEST_CONFIG, overlap=True)),
    ):
        assert compiler(call.source, 90) == ""
        assert compiler(call.source, 120) == ""
        with pytest.raises(ValueError, match="overlap on compute capability 80: needs 90 or later"):
            compiler(call.source, 80)


def test_what_does_not_fit_is_told_apart(compiler: Callable[[Source, int], str]) -> None:
    (call,) = linear_calls(64, UP, linear_configs(64, UP)[-1])
    assert compiler(call.source, 120) == "too large"


@pytest.mark.parametrize("call", CALLS[:2], ids=name_of)
def test_sources_survive_a_manifest(call: Call) -> None:
    assert Source.from_json(json.loads(json.dumps(call.source.to_json()))) == call.source


@pytest.mark.parametrize("call", [*CALLS, *reducing_calls()], ids=name_of)
def test_what_took_something_else_is_told_apart(call: Call) -> None:
    source = call.source
    assert takes(source)
    assert not takes(replace(source, constants=source.constants[1:]))
    assert not takes(replace(source, kinds=(*source.kinds, "i32")))
    assert not takes(replace(source, kernel=f"{source.kernel}_of_before"))
    assert not takes(replace(source, kernel=f"before_{source.kernel}"))
