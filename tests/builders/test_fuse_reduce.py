"""Which sums over ranks become kernels, and what is added on the way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from builders.fuse import fused, fused_operators
from builders.ops import tensor_parallel
from builders.program import Program, plain_operators, run
from tests.builders.programs import Draft, summary, tensors

X = ("tokens", "8")


class Doubled:
    """Two ranks that have the same."""

    def all_reduce(self, x: Tensor) -> Tensor:
        return x + x

    def all_gather(self, x: Tensor) -> Tensor:
        return torch.cat([x, x], dim=-1)


def case(name: str) -> Program:
    draft = Draft()
    x, other = draft.given("x", X), draft.given("other", X)
    ranks = 16 if name == "more ranks than of a node" else 2
    y = draft.op("rankforge.all_reduce", x, ranks)
    added = {
        "a column": draft.given("column", ("tokens", "1")),
        "another type": draft.given("wide", X, "float64"),
        "itself": y,
        "a vector": draft.weight("8"),
    }.get(name, other)
    if name == "swapped":
        return draft.program(draft.op("aten.add", other, y))
    if name == "a multiple":
        return draft.program(draft.op("aten.add", other, y, alpha=2))
    if name == "read twice":
        return draft.program(draft.op("aten.add", other, y), draft.op("aten.relu", y))
    if name == "an output":
        return draft.program(draft.op("aten.add", other, y), y)
    if name == "two residuals":
        return draft.program(draft.op("aten.add", other, draft.op("aten.add", x, y)))
    if name == "both sums":
        return draft.program(draft.op("aten.add", draft.op("rankforge.all_reduce", other, 2), y))
    if name == "whole numbers":
        ids = draft.given("ids", ("tokens",), "int64")
        return draft.program(draft.op("rankforge.all_reduce", ids, 2))
    return draft.program(draft.op("aten.add", y, added))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain", ["all_reduce residual"]),
        ("swapped", ["all_reduce residual"]),
        ("a multiple", ["all_reduce", "aten.add"]),
        ("a column", ["all_reduce", "aten.add"]),
        ("a vector", ["all_reduce", "aten.add"]),
        ("another type", ["all_reduce", "aten.add"]),
        ("itself", ["all_reduce", "aten.add"]),
        ("read twice", ["all_reduce", "aten.add", "aten.relu"]),
        ("an output", ["all_reduce", "aten.add"]),
        ("two residuals", ["all_reduce residual", "aten.add"]),
        ("both sums", ["all_reduce", "all_reduce residual"]),
        ("whole numbers", ["rankforge.all_reduce"]),
        ("more ranks than of a node", ["rankforge.all_reduce", "aten.add"]),
    ],
)
def test_sums_over_ranks(name: str, expected: list[str]) -> None:
    program = case(name)
    made, bound = fused(program), tensors(program)
    assert summary(made) == expected
    with tensor_parallel(Doubled()):
        found = run(made, {**plain_operators(), **fused_operators()}, bound)
        wanted = run(program, plain_operators(), bound)
    assert all(map(torch.equal, found, wanted))
    assert fused(made) == made
