"""rankforge.moe as kernel launches: expert by expert for few tokens, sorted by expert for many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from builders.cuda.example import ANY, Load
from builders.cuda.launch import Kernel, Launch, batch_buckets
from builders.cuda.site import Site
from builders.kernels.call import Call, Config
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
    table_rows,
)
from builders.limits import Limits

_MOST_FEW = 16
"""Beyond so many tokens, most experts are read anyway."""


class MoeKernel(Kernel):
    """One choice for both matrices of the experts."""

    def buckets(self, limits: Limits) -> Sequence[int]:
        return [ANY, *batch_buckets(limits.max_sequences)]

    def configs(self, site: Site, rows: int, limits: Limits, *, overlap: bool) -> Sequence[Config]:
        _, size_in, width = _sizes(site)
        tokens = Load.of(rows, limits).tokens
        grouped = grouped_configs(tokens * site.args[7], int(site.args[2].shape[0]), overlap=overlap)
        if not 0 < rows <= _MOST_FEW:
            return grouped
        fit_both = set(map(repr, few_configs(width, overlap=overlap)))
        few = [config for config in few_configs(size_in, overlap=overlap) if repr(config) in fit_both]
        return [*few, *grouped]

    def output(self, args: Sequence[Any]) -> Tensor:
        return torch.empty_like(args[0])

    def calls(self, config: Config, args: Sequence[Any], out: Tensor, launch: Launch) -> list[Call]:
        x, logits, up, down, _up_scale, _down_scale, first, top_k, renormalize, activation, gated = args
        experts = Experts(up=up, down=down, first=first, top_k=top_k, activation=activation, gated=gated)
        routed = Routed(
            share=x.new_empty(len(x), top_k, dtype=torch.float32),
            chosen=x.new_empty(len(x), top_k, dtype=torch.int32),
        )
        hidden = x.new_empty(routed.pairs, experts.width)
        first_calls = route(logits, renormalize, out=routed)
        if "BLOCK_M" not in config.blocks:
            ups = few_up(x, experts, routed, config, hidden=hidden)
            return [*first_calls, *ups, *few_down(hidden, experts, routed, config, out=out)]
        return [*first_calls, *_grouped(x, hidden, experts, routed, config, out)]


def _sizes(site: Site) -> tuple[int, ...]:
    """Experts held, size of x, width between the matrices."""
    up, down = site.args[2], site.args[3]
    return int(up.shape[0]), int(up.shape[2]), int(down.shape[2])


def _grouped(
    x: Tensor, hidden: Tensor, experts: Experts, routed: Routed, config: Config, out: Tensor
) -> list[Call]:
    rows = config.blocks["BLOCK_M"]
    by_expert = Sorted(
        order=x.new_empty(routed.pairs, dtype=torch.int32),
        tiles=x.new_empty(table_rows(routed.pairs, experts.held, rows), 3, dtype=torch.int32),
    )
    parts = x.new_empty(routed.pairs, x.shape[1])
    return [
        *sort(routed, experts, rows, out=by_expert, overlap=config.overlap),
        *grouped_up(x, experts, by_expert, config, hidden=hidden),
        *grouped_down(hidden, experts, by_expert, config, parts=parts),
        *combine(parts, experts, routed, COMBINE_CONFIGS[0], out=out),
    ]
