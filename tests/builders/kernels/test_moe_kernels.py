"""Mixture of experts, interpreted, beside the operator of builders/ops.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from builders import ops
from builders.kernels.call import Config, Runner
from builders.kernels.moe import (
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
from builders.spec import Activation

Near = Callable[[Tensor, Tensor], None]
NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Experts of all ranks and those here, and the tokens that choose among them."""

    tokens: int = 3
    experts: int = 4
    held: int = 4
    first: int = 0
    top_k: int = 2
    hidden: int = 64
    width: int = 32
    renormalize: bool = True
    activation: Activation = "silu"
    gated: bool = True
    dtype: torch.dtype = torch.bfloat16
    residual: bool = False


CASES = {
    "all experts here": Case(),
    "some here, not renormalized": Case(
        experts=6, held=2, first=2, top_k=3, renormalize=False, residual=True, dtype=torch.float16
    ),
    "odd sizes, not gated": Case(
        tokens=21, held=3, first=1, hidden=50, width=27, activation="gelu", gated=False, dtype=torch.float32
    ),
    "one expert here, of one": Case(tokens=5, experts=5, held=1, first=4, top_k=1, dtype=torch.float32),
}
BY_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Tensors of a case, and what the operator makes of them."""

    x: Tensor
    logits: Tensor
    experts: Experts
    residual: Tensor | None
    routed: Routed
    expected: Tensor


def inputs(case: Case) -> Inputs:
    torch.manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return (torch.randn(shape) / shape[-1] ** 0.5).to(case.dtype)

    x, logits = torch.randn(case.tokens, case.hidden).to(case.dtype), torch.randn(case.tokens, case.experts)
    experts = Experts(
        up=normal(case.held, case.width * (1 + case.gated), case.hidden),
        down=normal(case.held, case.hidden, case.width),
        first=torch.tensor(case.first),
        top_k=case.top_k,
        activation=case.activation,
        gated=case.gated,
    )
    share, chosen = ops.route(logits, case.top_k, case.renormalize)
    residual = torch.randn_like(x) if case.residual else None
    return Inputs(
        x=x,
        logits=logits,
        experts=experts,
        residual=residual,
        routed=Routed(share=share.contiguous(), chosen=chosen.int()),
        expected=expected(x, logits, experts, case) + (0 if residual is None else residual.float()),
    )


def expected(x: Tensor, logits: Tensor, experts: Experts, case: Case) -> Tensor:
    """In float32."""
    return ops.moe(
        x.float(),
        logits,
        experts.up.float(),
        experts.down.float(),
        None,
        None,
        experts.first,
        case.top_k,
        case.renormalize,
        case.activation,
        case.gated,
    )


@BY_CASE
def test_route(case: Case, run: Runner, assert_near: Near) -> None:
    given = inputs(case)
    out = Routed(
        share=torch.full((case.tokens, case.top_k), NAN),
        chosen=torch.full((case.tokens, case.top_k), -1, dtype=torch.int32),
    )
    run(route(given.logits, case.renormalize, out=out))
    assert torch.equal(out.chosen, given.routed.chosen)
    assert_near(out.share, given.routed.share)


def test_of_equal_experts_the_first_are_chosen(run: Runner) -> None:
    out = Routed(share=torch.zeros(1, 2), chosen=torch.zeros(1, 2, dtype=torch.int32))
    run(route(torch.tensor([[1.0, 3.0, 3.0, 3.0]]), True, out=out))
    assert out.chosen.tolist() == [[1, 2]]
    assert out.share.tolist() == [[0.5, 0.5]]


@BY_CASE
def test_few(case: Case, run: Runner, assert_near: Near) -> None:
    given = inputs(case)
    hidden = torch.full((given.routed.pairs, case.width), NAN, dtype=case.dtype)
    out = torch.full_like(given.x, NAN)
    config = Config(blocks={"BLOCK_N": 8, "BLOCK_K": 32})
    run(few_up(given.x, given.experts, given.routed, config, hidden=hidden))
    run(few_down(hidden, given.experts, given.routed, config, out=out, residual=given.residual))
    assert_near(out, given.expected)


@BY_CASE
def test_grouped(case: Case, run: Runner, assert_near: Near) -> None:
    given, rows = inputs(case), 16
    pairs = given.routed.pairs
    hidden = torch.full((pairs, case.width), NAN, dtype=case.dtype)
    parts = torch.full((pairs, case.hidden), NAN, dtype=case.dtype)
    out = torch.full_like(given.x, NAN)
    by_expert = unsorted(pairs, case.held, rows)
    config = Config(blocks={"BLOCK_M": rows, "BLOCK_N": 32, "BLOCK_K": 32, "DEPTH": 1})
    run(
        sort(given.routed, given.experts, rows, out=by_expert)
        + grouped_up(given.x, given.experts, by_expert, config, hidden=hidden)
        + grouped_down(hidden, given.experts, by_expert, config, parts=parts)
        + combine(
            parts,
            given.experts,
            given.routed,
            Config(blocks={"BLOCK": 32}),
            out=out,
            residual=given.residual,
        )
    )
    assert_near(out, given.expected)


def unsorted(pairs: int, held: int, rows: int) -> Sorted:
    """Full of what an earlier step could have left."""
    return Sorted(
        order=torch.full((pairs,), 99, dtype=torch.int32),
        tiles=torch.full((table_rows(pairs, held, rows), 3), 99, dtype=torch.int32),
    )


def test_sort_covers_every_pair_of_the_experts_here(run: Runner) -> None:
    torch.manual_seed(0)
    chosen = torch.randint(0, 6, (300, 2)).int()
    chosen[chosen == 3] = 2  # an expert without tokens
    experts = Experts(
        up=torch.empty(4, 1, 1),
        down=torch.empty(4, 1, 1),
        first=torch.tensor(1),
        top_k=2,
        activation="silu",
        gated=False,
    )
    out = unsorted(600, 4, 16)
    run(sort(Routed(share=torch.zeros(300, 2), chosen=chosen), experts, 16, out=out))
    tiles = [tile for tile in out.tiles.tolist() if tile[2]]
    found = [
        (expert, pair) for expert, first, rows in tiles for pair in out.order[first : first + rows].tolist()
    ]
    pairs = chosen.flatten().tolist()
    assert found == sorted((expert - 1, pair) for pair, expert in enumerate(pairs) if 1 <= expert <= 4)
    assert all(0 < rows <= 16 for _, _, rows in tiles)


@pytest.mark.parametrize("pairs", [2, 32, 300, 16384])
def test_candidates(pairs: int) -> None:
    assert len(grouped_configs(pairs, 8)) >= 3
    assert all(len(few_configs(size)) >= 4 for size in (4096, 6144, 10752, 14336))
