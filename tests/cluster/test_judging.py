"""Perplexity from sums of log-probabilities, by hand."""

from __future__ import annotations

import math

import pytest

from cluster.dataset import Article
from cluster.judging import Perplexity, judged, mean_perplexity
from cluster.rouge import Scorer
from cluster.summaries import Summary, Text

ARTICLE, SCORER = Article(text="x", highlights="b a"), Scorer()


def perplexity(num_prompt: int, prompt: float | None, num_text: int, text: float | None) -> Perplexity | None:
    made = Text(tokens=tuple(range(num_text)), text="a", logprob=text)
    (found,) = judged(ARTICLE, (1,) * num_prompt, Summary(texts=(made,), prompt_logprob=prompt), SCORER)
    assert found.rouge.rouge1 == pytest.approx(200 / 3)
    assert found.to_json()["perplexity"] == (found.perplexity and vars(found.perplexity))
    return found.perplexity


def test_of_one_article() -> None:
    """The prompt's first token follows nothing, and is not counted."""
    found = perplexity(3, 2 * math.log(1 / 5), 2, 2 * math.log(1 / 20))
    assert found and vars(found) == pytest.approx({"prompt": 5, "summary": 20, "both": 10})
    found = perplexity(1, 0.0, 2, 2 * math.log(1 / 20))
    assert found and found.prompt is None and (found.summary, found.both) == pytest.approx((20, 20))
    assert perplexity(3, None, 2, None) is None


@pytest.mark.parametrize("logprob", [-1e4, -math.inf])
def test_what_a_model_never_expects(logprob: float) -> None:
    found = perplexity(3, -1.0, 2, logprob)
    assert found and found.both == found.summary == math.inf and found.prompt == pytest.approx(math.exp(0.5))


def test_mean_is_over_articles() -> None:
    """However long they are."""
    known = Perplexity(both=10, prompt=5, summary=20)
    found = mean_perplexity([known, Perplexity(both=20, prompt=None, summary=30)])
    assert found == Perplexity(both=15, prompt=5, summary=25)
    assert mean_perplexity([Perplexity(both=1, prompt=None, summary=1)]).prompt is None
