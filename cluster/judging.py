"""What a summary is worth: how much of the highlights it has, and how well the model expected it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from cluster.dataset import Article
from cluster.rouge import Rouge, Scorer
from cluster.summaries import Prompt, Summary, Text


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """One over the likelihood of a token, as the model sees it: the geometric mean over tokens."""

    both: float
    """Of a prompt and its summary together: what the old script called per-token perplexity."""
    prompt: float | None
    """Of a prompt's tokens but the first, which follows nothing; None where that is the only one."""
    summary: float
    """Of the summary's tokens, with the one that ended it."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One summary of one article."""

    text: Text
    rouge: Rouge
    perplexity: Perplexity | None
    """If it was asked for."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        perplexity = self.perplexity and asdict(self.perplexity)
        tokens = list(self.text.tokens)
        return {"text": self.text.text, "tokens": tokens, **asdict(self.rouge), "perplexity": perplexity}


def judged(article: Article, prompt: Prompt, summary: Summary, scorer: Scorer) -> tuple[Judged, ...]:
    """Every text that was made of an article."""
    return tuple(
        Judged(
            text=text,
            rouge=scorer.score(text.text, article.highlights),
            perplexity=_perplexity(len(prompt) - 1, summary.prompt_logprob, text),
        )
        for text in summary.texts
    )


def _perplexity(num_prompt: int, prompt: float | None, text: Text) -> Perplexity | None:
    if prompt is None or text.logprob is None:
        return None
    num_text = len(text.tokens)
    return Perplexity(
        both=_per_token(prompt + text.logprob, num_prompt + num_text),
        prompt=_per_token(prompt, num_prompt) if num_prompt else None,
        summary=_per_token(text.logprob, num_text),
    )


def _per_token(logprob: float, num_tokens: int) -> float:
    try:
        return math.exp(-logprob / num_tokens)
    except OverflowError:
        return math.inf


def mean_perplexity(found: Sequence[Perplexity]) -> Perplexity:
    """Over articles, as the old script took it."""
    prompts = [one.prompt for one in found if one.prompt is not None]
    return Perplexity(
        both=fmean(one.both for one in found),
        prompt=fmean(prompts) if prompts else None,
        summary=fmean(one.summary for one in found),
    )
