"""What articles are summarized by, and what comes of it: the same for an engine and for Transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from cluster.dataset import Article

Prompt = tuple[int, ...]

ARTICLE = "{article}"
"""Where a template has the article."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """One text that was generated."""

    tokens: tuple[int, ...]
    """The one that ended it is the last."""
    text: str
    logprob: float | None = None
    """The sum of the tokens' log-probabilities, if it was asked for."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What was made of one article."""

    texts: tuple[Text, ...]
    """One, or all beams, the best first."""
    prompt_logprob: float | None = None
    """The sum of the log-probabilities of the prompt's tokens but the first, if it was asked for."""


class Summarizer(Protocol):
    """A model that is ready."""

    def summarize(self, prompts: Sequence[Prompt]) -> list[Summary]:
        """One batch; this is what is timed."""

    def scored(self, prompts: Sequence[Prompt], summaries: Sequence[Summary]) -> list[Summary]:
        """The same with all log-probabilities; this is not timed."""


@dataclass(frozen=True, kw_only=True)
class Prompter:
    """Makes the prompts, once for all models."""

    tokenizer: PreTrainedTokenizerBase
    template: str
    max_tokens: int
    """What is too long loses its beginning: a prompt's end says what to do."""
    add_special_tokens: bool

    def prompt(self, article: Article) -> Prompt:
        """The article in its template, as tokens."""
        text = self.template.replace(ARTICLE, article.text).strip().replace(" n't", "n't")
        self.tokenizer.truncation_side = "left"
        tokens = self.tokenizer(
            text,
            add_special_tokens=self.add_special_tokens,
            truncation=True,
            max_length=self.max_tokens,
            verbose=False,
        )
        return tuple(tokens["input_ids"])
