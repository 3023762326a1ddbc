"""Tokens drawn by the kernel, interpreted or launched, beside those of PyTorch's operators."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from actors.sampler import Drawer, Sampler
from actors.sampling_params import SamplingParams
from builders.kernels.call import Runner
from builders.kernels.draw import Wishes, draw

ROWS = 5


def drawn_by(run: Runner) -> Drawer:
    def drawer(scores: Tensor, slots: Tensor, positions: Tensor, wishes: Wishes, *, scaled: bool) -> Tensor:
        out = torch.full_like(slots, -1)
        run(draw(scores.contiguous(), slots, positions, wishes, out=out, scaled=scaled))
        return out

    return drawer


def samplers(wanted: list[SamplingParams], size: int, run: Runner) -> tuple[Sampler, Sampler]:
    """PyTorch's and the kernel's."""
    found = tuple(Sampler(slots=ROWS, vocab_size=size, drawer=drawer) for drawer in (None, drawn_by(run)))
    for sampler in found:
        for slot, params in enumerate(wanted):
            sampler.admit(slot, params, [1])
    return found


def wish(choice: random.Random, *, both: bool) -> SamplingParams:
    """Any, with top-k and top-p in one row or not."""
    top_k = choice.choice([0, 1, 2, 7, 50, 10_000])
    top_p = choice.choice([1.0, 0.95, 0.5, 0.1, 1e-6])
    if not both and top_k:
        top_p = 1.0
    return SamplingParams(
        seed=choice.randrange(1 << 62) - (1 << 61),
        temperature=choice.choice([0, 1e-6, 0.3, 1.0, 2.5]),
        top_k=top_k,
        top_p=top_p,
        min_p=choice.choice([0, 0, 0.02, 0.9]),
    )


def scores_of(kind: str, size: int, seed: int) -> Tensor:
    scores = torch.randn(ROWS, size, generator=torch.Generator().manual_seed(seed))
    if kind == "peaked":
        return scores * 8
    if kind == "tied":
        return (scores * 2).round()
    if kind == "barred":
        return scores.masked_fill(torch.arange(size) % 3 > 0, float("-inf"))
    return scores * 0.01 if kind == "flat" else scores * 2


@pytest.mark.parametrize("kind", ["plain", "peaked", "tied", "barred", "flat"])
@pytest.mark.parametrize(("size", "both"), [(97, False), (97, True), (5000, False)])
def test_tokens_are_those_of_pytorch(kind: str, size: int, both: bool, run: Runner) -> None:
    """A logarithm's last digit decides between two tokens about once in a million draws."""
    choice = random.Random(f"{kind}{size}{both}")
    for turn in range(4):
        plain, ours = samplers([wish(choice, both=both) for _ in range(ROWS)], size, run)
        scores, slots = scores_of(kind, size, turn), torch.arange(ROWS)
        positions = torch.tensor([choice.randrange(1 << 20) for _ in range(ROWS)])
        expected = plain.sample(scores, slots, positions).tokens
        assert ours.sample(scores, slots, positions).tokens.tolist() == expected.tolist()


def test_padding_and_impossible_rows_end(run: Runner) -> None:
    """Rows of nobody, and rows in which nothing is possible."""
    plain, ours = samplers([SamplingParams(seed=1, top_p=0.5)] * 2, 64, run)
    scores = torch.randn(3, 64)
    scores[1] = float("-inf")
    slots, positions = torch.tensor([0, 1, plain.nobody]), torch.tensor([5, 5, 0])
    tokens = ours.sample(scores, slots, positions).tokens.tolist()
    expected = plain.sample(scores, slots, positions).tokens.tolist()
    assert (tokens[0], tokens[2]) == (expected[0], expected[2])
    assert 0 <= tokens[1] < 64


def test_draws_follow_the_scores(run: Runner) -> None:
    """How often each token comes, of what a nucleus keeps."""
    params = SamplingParams(seed=3, top_p=0.8)
    _, ours = samplers([params] * ROWS, 6, run)
    scores = torch.tensor([0.45, 0.3, 0.15, 0.05, 0.03, 0.02]).log().expand(400, 6).contiguous()
    tokens = ours.sample(scores, torch.zeros(400, dtype=torch.int64), torch.arange(400)).tokens
    shares = tokens.bincount(minlength=6) / 400
    torch.testing.assert_close(shares[:3], torch.tensor([0.5, 0.333, 0.167]), rtol=0, atol=0.08)
    assert shares[3:].sum() == 0
