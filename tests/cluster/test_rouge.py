"""ROUGE against numbers by hand."""

from __future__ import annotations

import sys

import pytest

from builders.errors import UserError
from cluster.rouge import Rouge, Scorer, mean

SCORER = Scorer()


def rouge(*values: float) -> Rouge:
    one, two, longest, lines = values
    return Rouge(rouge1=one, rouge2=two, rougeL=longest, rougeLsum=lines)


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("The cat sat.", "the cat sat", rouge(100, 100, 100, 100)),
        ("dogs bark", "the cat sat", rouge(0, 0, 0, 0)),
        ("", "the cat sat", rouge(0, 0, 0, 0)),
        # Two of 3 words and of 5; one of 2 pairs and of 4; in order, the same two words.
        ("the cat sat", "the cat ran\nthe dog", rouge(50, 100 / 3, 50, 50)),
        # Both words; the only pair is another; one of two in order, but in each line its word is found.
        ("b a", "a\nb", rouge(100, 0, 50, 100)),
        # No stemming: "cat" is another word than "cats". 1 of 2 and of 4 words.
        ("cats sleep", "the cat may sleep", rouge(100 / 3, 0, 100 / 3, 100 / 3)),
    ],
)
def test_by_hand(text: str, reference: str, expected: Rouge) -> None:
    assert vars(SCORER.score(text, reference)) == pytest.approx(vars(expected))


def test_mean_is_of_each_kind_by_itself() -> None:
    found = mean([rouge(10, 20, 30, 40), rouge(30, 30, 30, 0)])
    assert vars(found) == pytest.approx(vars(rouge(20, 25, 30, 20)))


def test_without_the_library_its_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(UserError, match=r"pip install 'rankforge\[eval\]'"):
        Scorer()
