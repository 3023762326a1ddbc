"""The largest of every row, found by kernels, interpreted or launched, beside PyTorch's argmax."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from builders.kernels.call import Config, Runner
from builders.kernels.likeliest import likeliest, sources

SMALL = Config(blocks={"BLOCK": 16, "STEPS": 3})
NAN, INF = float("nan"), float("inf")


def found(scores: Tensor, run: Runner, config: Config = SMALL) -> list[int]:
    out = torch.full((len(scores),), -1)
    run(likeliest(scores, out=out, config=config))
    return out.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [1, 15, 16, 48, 97, 1000])
@pytest.mark.parametrize("kind", ["random", "tied", "barred", "below zero"])
def test_places_are_those_of_pytorch(kind: str, size: int, dtype: torch.dtype, run: Runner) -> None:
    """The first of equals; rows in which much is impossible."""
    scores = torch.randn(7, size, generator=torch.Generator().manual_seed(size))
    if kind == "tied":
        scores = scores.round()
    if kind == "barred":
        scores = scores.masked_fill(torch.rand_like(scores) < 0.9, -INF)
        scores[3] = -INF
    if kind == "below zero":
        scores = -scores.abs()
    scores = scores.to(dtype)
    assert found(scores, run) == scores.argmax(-1).tolist()


@pytest.mark.parametrize(
    "row",
    [
        [-INF] * 100,
        [INF, *[1.0] * 60, INF],
        [1.0] * 70 + [NAN, INF, NAN],
        [NAN] * 100,
        [INF] * 20 + [NAN] + [INF] * 60,
        [-1.0] * 30 + [-0.0] + [-2.0] * 30 + [0.0],
        [-1.0] * 30 + [0.0] + [-2.0] * 30 + [-0.0],
        [-INF] * 50 + [NAN],
        [-3.0e38, -3.3e38] * 30,
        [1e-45, 0.0, 2e-45] * 30,
    ],
)
def test_what_is_hardly_a_number(row: list[float], run: Runner) -> None:
    scores = torch.tensor([row, row[::-1]])
    assert found(scores, run) == scores.argmax(-1).tolist()


def test_rows_may_lie_apart(run: Runner) -> None:
    """As padded logits do, whose padding would win."""
    padded = torch.randn(5, 128)
    padded[:, 101:] = 9
    assert found(padded[:, :101], run) == padded[:, :101].argmax(-1).tolist()


@pytest.mark.parametrize("rows", [1, 3])
def test_a_whole_vocabulary(rows: int, run: Runner) -> None:
    """As engines have it cut."""
    scores = torch.randint(0, 400_000, (rows, 128256)).float()
    out = torch.full((rows,), -1)
    run(likeliest(scores, out=out))
    assert out.tolist() == scores.argmax(-1).tolist()


def test_launches_need_what_was_compiled() -> None:
    compiled = sources(101, (101, 128), (torch.float32, torch.bfloat16))
    assert len(compiled) == 5, "both strides in both dtypes, and one that joins"
    padded = torch.empty(9, 128, dtype=torch.bfloat16)
    for scores in (padded[:, :101], padded[:, :101].float()):
        calls = likeliest(scores, out=torch.empty(9, dtype=torch.int64))
        assert {one.source for one in calls} <= {*compiled}
