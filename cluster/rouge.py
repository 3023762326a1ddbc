"""ROUGE: how much of a reference a text has, in words, pairs of words, and words in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from builders.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Rouge:
    """F-measures in percent, as Google's rouge-score computes them, without stemming."""

    rouge1: float
    """Words."""
    rouge2: float
    """Pairs of words."""
    rougeL: float
    """The longest common sequence of words."""
    rougeLsum: float
    """The same, line by line of the reference."""


LABELS = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}


class Scorer:
    """Compares texts with references."""

    def __init__(self) -> None:
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError as error:
            raise UserError(
                "the library that computes ROUGE is missing; pip install 'rankforge[eval]'"
            ) from error
        self._scorer = RougeScorer(list(LABELS))

    def score(self, text: str, reference: str) -> Rouge:
        """Of one text."""
        found = self._scorer.score(target=reference, prediction=text)
        return Rouge(**{name: 100 * found[name].fmeasure for name in LABELS})


def mean(scores: Sequence[Rouge]) -> Rouge:
    """Of many texts."""
    rows = [asdict(score) for score in scores]
    return Rouge(**{name: fmean(row[name] for row in rows) for name in LABELS})
