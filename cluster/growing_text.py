"""One text of an answer as its tokens come."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import Struct

from actors.detokenizer import Words
from actors.messages import Logprobs, Tokens
from actors.sampling_params import SamplingParams
from actors.stops import FinishReason, Output

Scored = tuple[int, Logprobs]
"""A token and how likely it was."""


class Growth(Struct, frozen=True):
    """What is new of a text."""

    text: str
    finish: FinishReason | None = None
    scored: tuple[Scored, ...] = ()
    """Its tokens, if their log-probabilities were asked for, without the one that ended it."""
    prompt_logprobs: tuple[Logprobs, ...] = ()
    """With a text's first growth, if they were asked for: of every token of the prompt but the first."""
    ended_by: tuple[Scored, ...] = ()
    """The token that ended it, which is no part of the text."""


@dataclass(slots=True)
class GrowingText:
    """Knows where it ends: at a stop string before the engine does."""

    output: Output
    is_hidden: bool = False
    """Only the prompt is asked for, and the token that a prompt cannot be computed without is not given."""
    finish: FinishReason | None = None
    likelihood: float = 0.0
    """Sum of log-probabilities, where they come with the tokens."""

    @property
    def num_tokens(self) -> int:
        return 0 if self.is_hidden else self.output.num_tokens

    @property
    def mean_likelihood(self) -> float:
        """Of a token."""
        return self.likelihood / max(1, self.output.num_tokens)

    def take(self, news: Tokens) -> Growth:
        """What the news add, up to the text's end."""
        if self.is_hidden:
            self.finish = "length"
            return Growth("", "length", (), news.prompt_logprobs)
        if len(news.tokens) == 1 and not news.logprobs:
            piece = self.output.add(news.tokens[0])
            self.finish = piece.finish_reason
            return Growth(piece.text, piece.finish_reason, (), news.prompt_logprobs)
        return self._several(news)

    def _several(self, news: Tokens) -> Growth:
        texts: list[str] = []
        scored: list[Scored] = []
        ended_by: list[Scored] = []
        for place, token in enumerate(news.tokens):
            if self.finish:
                break
            piece = self.output.add(token)
            self.finish = piece.finish_reason
            texts.append(piece.text)
            if place < len(news.logprobs):
                self.likelihood += news.logprobs[place].sampled
                part = ended_by if isinstance(piece.stopped_by, int) else scored
                part.append((token, news.logprobs[place]))
        return Growth("".join(texts), self.finish, tuple(scored), news.prompt_logprobs, tuple(ended_by))


def growing(params: SamplingParams, words: Words, eos: frozenset[int], *, is_hidden: bool) -> GrowingText:
    """A text that has no tokens yet."""
    return GrowingText(Output(params, words, eos), is_hidden)


def joined(parts: list[Growth]) -> Growth:
    """All growths of a text as one."""
    return Growth(
        "".join(part.text for part in parts),
        parts[-1].finish if parts else None,
        tuple(one for part in parts for one in part.scored),
        parts[0].prompt_logprobs if parts else (),
        parts[-1].ended_by if parts else (),
    )
