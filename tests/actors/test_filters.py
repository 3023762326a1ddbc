"""Top-k, top-p and min-p against Transformers' own warpers."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from actors.filters import kept_by_min_p, kept_by_top_k, kept_by_top_p
from tests.strategies import quick

NO_IDS = torch.zeros(1, 1, dtype=torch.int64)


@st.composite
def scores(draw: DrawFn) -> Tensor:
    """Random logits of a few or many tokens, flat or sharp, with or without equals among them."""
    rows, vocab = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 7, 50, 1000]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    drawn = torch.randn(rows, vocab, generator=generator) * draw(st.sampled_from([0.1, 1.0, 5.0, 30.0]))
    if draw(st.booleans()):
        drawn = drawn.bfloat16().float()
    if draw(st.booleans()):
        drawn[torch.rand(rows, vocab, generator=generator) < 0.3] = float("-inf")
        drawn[:, 0] = 0
    return drawn


def by_row(warped: list[Tensor]) -> Tensor:
    return torch.cat(warped)


@quick
@given(scores(), st.data())
def test_top_k(logits: Tensor, data: st.DataObject) -> None:
    ks = [data.draw(st.integers(1, 60)) for _ in logits]
    expected = [TopKLogitsWarper(k)(NO_IDS, row[None]) for k, row in zip(ks, logits, strict=True)]
    assert kept_by_top_k(logits, torch.tensor(ks), max(ks)).equal(by_row(expected))


@quick
@given(scores(), st.data())
def test_top_p(logits: Tensor, data: st.DataObject) -> None:
    """In double precision: float32 sums would make Transformers' edge a matter of rounding.

    Which of several equals at the edge are kept is a matter of its sort, which is not stable.
    """
    ps = [data.draw(st.floats(0.01, 0.99)) for _ in logits]
    expected = [TopPLogitsWarper(p)(NO_IDS, row[None].double()) for p, row in zip(ps, logits, strict=True)]
    kept = kept_by_top_p(logits, torch.tensor(ps, dtype=torch.float64))
    assert kept.sort().values.equal(by_row(expected).float().sort().values)
    for row, scores, other in zip(kept, logits, by_row(expected), strict=True):
        assert scores.unique().numel() < scores.numel() or row.equal(other.float())


def test_top_p_keeps_the_last_of_equals() -> None:
    kept = kept_by_top_p(torch.zeros(1, 5), torch.tensor([0.5], dtype=torch.float64))
    assert kept.isfinite().tolist() == [[False, False, True, True, True]]


@quick
@given(scores(), st.data())
def test_min_p(logits: Tensor, data: st.DataObject) -> None:
    ps = [data.draw(st.floats(0.001, 1)) for _ in logits]
    expected = [MinPLogitsWarper(p)(NO_IDS, row[None].double()) for p, row in zip(ps, logits, strict=True)]
    assert kept_by_min_p(logits, torch.tensor(ps)).equal(by_row(expected).float())


@quick
@given(scores())
def test_off_changes_nothing(logits: Tensor) -> None:
    rows = len(logits)
    assert kept_by_top_k(logits, torch.zeros(rows, dtype=torch.int64), 8).equal(logits)
    assert kept_by_top_p(logits, torch.ones(rows, dtype=torch.float64)).equal(logits)
    assert kept_by_min_p(logits, torch.zeros(rows)).equal(logits)


def test_a_row_of_many_is_the_row_alone() -> None:
    """More rows than are sorted at once."""
    logits = torch.randn(150, 300, generator=torch.Generator().manual_seed(0))
    ps = torch.linspace(0.1, 1, 150, dtype=torch.float64)
    together = kept_by_top_p(logits, ps)
    assert together.equal(torch.cat([kept_by_top_p(logits[i, None], ps[i, None]) for i in range(150)]))


def test_a_large_vocabulary_keeps_the_right_mass() -> None:
    """Where float32 sums lose the tail: 128256 tokens that are nearly alike."""
    logits = torch.randn(2, 128256, generator=torch.Generator().manual_seed(0)) * 0.01
    kept = kept_by_top_p(logits, torch.tensor([0.3, 0.9], dtype=torch.float64)).isfinite()
    mass = (logits.double().softmax(-1) * kept).sum(-1)
    torch.testing.assert_close(mass, torch.tensor([0.3, 0.9], dtype=torch.float64), rtol=0, atol=1e-5)
