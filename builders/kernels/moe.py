"""Launchers of mixture of experts: route, then few_up and few_down, or sort, grouped_up and _down, combine.

The second way reads an expert's weights once for all its tokens; both give the same sums in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from builders.kernels.attention import max_tiles
from builders.kernels.call import Call, Config, Constant, call, cdiv, power_of_two
from builders.spec import Activation

ROUTE_CONFIG = Config(blocks={}, warps=1, stages=1)


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The experts that this rank holds, and what they compute."""

    up: Tensor
    """[experts, width, H]; where gated, the gates' rows and then as many that are multiplied with them."""
    down: Tensor
    """[experts, H, width]"""
    first: Tensor
    """One integer: which of all experts is the first here."""
    top_k: int
    activation: Activation
    gated: bool

    @property
    def held(self) -> int:
        """How many."""
        return self.up.shape[0]

    @property
    def width(self) -> int:
        """Of what is between up and down."""
        return self.down.shape[2]


@dataclass(frozen=True, kw_only=True)
class Routed:
    """What each token chose of all experts."""

    share: Tensor
    """[T, top_k] float32."""
    chosen: Tensor
    """[T, top_k] int32."""

    @property
    def pairs(self) -> int:
        """Tokens times choices."""
        return self.chosen.numel()


@dataclass(frozen=True, kw_only=True)
class Sorted:
    """Pairs by expert, cut into tiles of one expert each."""

    order: Tensor
    """[pairs] int32: pairs in order of their experts; those of other ranks' experts are left out."""
    tiles: Tensor
    """[table_rows(...), 3] int32: expert here, first place in `order`, rows."""


def table_rows(pairs: int, experts: int, rows: int) -> int:
    """How many tiles of so many rows `Sorted.tiles` must have room for."""
    return max_tiles(pairs, experts, rows)


def route(logits: Tensor, renormalize: bool, *, out: Routed, config: Config = ROUTE_CONFIG) -> list[Call]:
    """The best experts of each token; logits [T, all experts]."""
    tokens, experts = logits.shape
    top_k = out.chosen.shape[1]
    constants: dict[str, Constant] = {
        "EXPERTS": experts,
        "TOP_K": top_k,
        "RENORMALIZE": renormalize,
        "BLOCK_E": power_of_two(experts),
        "BLOCK_TOP": power_of_two(top_k),
    }
    return [call("moe.route", (out.share, out.chosen, logits), constants, (tokens,), config)]


def few_up(x: Tensor, experts: Experts, routed: Routed, config: Config, *, hidden: Tensor) -> list[Call]:
    """hidden [pairs, width] = act(up · x) for x [T, H]; rows of other ranks' experts are left as they are."""
    constants = _up_constants(experts) | {"EXPERTS": experts.held}
    args = (hidden, x, experts.up, routed.chosen, experts.first)
    grid = (cdiv(experts.width, config.blocks["BLOCK_N"]), routed.pairs)
    return [call("moe.few_up", args, constants, grid, config)]


def few_down(
    hidden: Tensor,
    experts: Experts,
    routed: Routed,
    config: Config,
    *,
    out: Tensor,
    residual: Tensor | None = None,
) -> list[Call]:
    """out [T, H] = sum of share · (down · hidden) + residual."""
    constants: dict[str, Constant] = {
        "TOP_K": experts.top_k,
        "EXPERTS": experts.held,
        "N": out.shape[1],
        "K": experts.width,
    }
    args = (out, hidden, experts.down, residual, routed.share, routed.chosen, experts.first)
    grid = (cdiv(out.shape[1], config.blocks["BLOCK_N"]), out.shape[0])
    return [call("moe.few_down", args, constants, grid, config)]


def sort(routed: Routed, experts: Experts, rows: int, *, out: Sorted, overlap: bool = False) -> list[Call]:
    """Pairs by expert in tiles of `rows`, without a word to the host."""
    config = Config(blocks={"BLOCK_P": 256, "BLOCK_M": rows}, warps=4, stages=1, overlap=overlap)
    constants: dict[str, Constant] = {"EXPERTS": experts.held, "BLOCK_E": power_of_two(experts.held)}
    args = (out.order, out.tiles, routed.chosen, experts.first, routed.pairs, out.tiles.shape[0])
    return [call("moe.sort", args, constants, (experts.held,), config)]


def grouped_up(
    x: Tensor, experts: Experts, by_expert: Sorted, config: Config, *, hidden: Tensor
) -> list[Call]:
    """As few_up, a tile of one expert's pairs at a time; `sort` must have cut tiles of BLOCK_M rows."""
    args = (hidden, x, experts.up, by_expert.order, by_expert.tiles)
    grid = (by_expert.tiles.shape[0], cdiv(experts.width, config.blocks["BLOCK_N"]))
    return [call("moe.grouped", args, _up_constants(experts), grid, config)]


def grouped_down(
    hidden: Tensor, experts: Experts, by_expert: Sorted, config: Config, *, parts: Tensor
) -> list[Call]:
    """parts [pairs, H] = down · hidden, for `combine` to add up."""
    constants: dict[str, Constant] = {
        "TOP_K": 1,
        "N": parts.shape[1],
        "K": experts.width,
        "ACT": "none",
        "GATED": False,
    }
    args = (parts, hidden, experts.down, by_expert.order, by_expert.tiles)
    grid = (by_expert.tiles.shape[0], cdiv(parts.shape[1], config.blocks["BLOCK_N"]))
    return [call("moe.grouped", args, constants, grid, config)]


def combine(
    parts: Tensor,
    experts: Experts,
    routed: Routed,
    config: Config,
    *,
    out: Tensor,
    residual: Tensor | None = None,
) -> list[Call]:
    """out [T, H] = sum of share · part over the experts here, in the order of choice, + residual."""
    constants: dict[str, Constant] = {
        "TOP_K": experts.top_k,
        "EXPERTS": experts.held,
        "WIDTH": out.shape[1],
    }
    args = (out, parts, residual, routed.share, routed.chosen, experts.first)
    grid = (out.shape[0], cdiv(out.shape[1], config.blocks["BLOCK"]))
    return [call("moe.combine", args, constants, grid, config)]


def _up_constants(experts: Experts) -> dict[str, Constant]:
    return {
        "TOP_K": experts.top_k,
        "N": experts.width,
        "K": experts.up.shape[2],
        "ACT": experts.activation,
        "GATED": experts.gated,
    }


def few_configs(size_in: int, *, overlap: bool = False) -> tuple[Config, ...]:
    """Candidates of few_up and few_down, for rows of `size_in`."""
    return tuple(
        Config(blocks={"BLOCK_N": block_n, "BLOCK_K": block_k}, warps=warps, stages=1, overlap=overlap)
        for block_n, block_k, warps in _FEW
        if cdiv(size_in, block_k) * block_k * 4 <= size_in * 5 and size_in <= 32 * block_k
    )


def grouped_configs(pairs: int, experts: int, *, overlap: bool = False) -> tuple[Config, ...]:
    """Candidates of grouped_up and grouped_down, for pairs spread over so many experts."""
    share = cdiv(pairs, experts)
    return tuple(
        Config(
            blocks={"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "DEPTH": depth},
            warps=warps,
            stages=depth,
            overlap=overlap,
        )
        for block_m, block_n, block_k, depth, warps in _GROUPED
        if block_m == 16 or block_m <= 2 * share
        if block_m >= 64 or share <= 4 * block_m
    )


_FEW = (
    # BLOCK_N, BLOCK_K, warps
    (4, 1024, 4),
    (2, 1024, 4),
    (1, 1024, 4),
    (8, 1024, 4),
    (4, 512, 2),
    (2, 2048, 8),
    (4, 2048, 8),
    (4, 256, 1),
    (8, 256, 4),
    (8, 64, 1),
)

_GROUPED = (
    # BLOCK_M, BLOCK_N, BLOCK_K, DEPTH, warps
    (16, 64, 128, 3, 4),
    (16, 32, 256, 3, 4),
    (16, 64, 64, 4, 4),
    (16, 128, 64, 3, 4),
    (32, 64, 128, 3, 4),
    (32, 64, 64, 4, 4),
    (32, 128, 64, 3, 4),
    (64, 64, 64, 4, 4),
    (64, 128, 64, 3, 4),
    (64, 64, 64, 3, 4),
    (128, 128, 64, 3, 8),
    (128, 64, 64, 3, 4),
    (128, 128, 32, 3, 8),
)

COMBINE_CONFIGS = tuple(
    Config(blocks={"BLOCK": block}, warps=warps, stages=1)
    for block, warps in ((1024, 4), (4096, 8), (512, 2))
)
