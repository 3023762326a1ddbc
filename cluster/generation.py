"""Generating for many prompts at once: from tokens to tokens, texts, scores and logits, in order."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from actors import stops
from actors.detokenizer import Words
from actors.messages import Logprobs, Request, Tokens, Usage
from actors.sampling_params import SamplingParams
from actors.stops import Piece
from actors.texts import check_request
from builders.errors import UserError
from builders.limits import Limits

OnPiece = Callable[[int, int, Piece], None]
"""Hears what every token adds: number of the prompt, which of its texts, what is new."""


class TokenSource(Protocol):
    """What generates tokens: a group of ranks and its scheduler."""

    @property
    def limits(self) -> Limits: ...

    @property
    def eos(self) -> frozenset[int]: ...

    @property
    def has_work(self) -> bool: ...

    def add(self, request: Request) -> None:
        """Queue a request, or refuse what can never be done."""

    def cancel(self, request: str, index: int | None = None) -> None:
        """End a request's texts, or one of them, without further news."""

    def step(self) -> list[Tokens]:
        """The news of one step."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """One text that was generated."""

    tokens: tuple[int, ...]
    """The one that ended it is the last."""
    text: str | None
    """Without what ended it; None where there is no tokenizer."""
    finish: Literal["stop", "length"]
    score: float | None
    """What beam search ranks it by."""
    logprobs: tuple[Logprobs, ...]
    """Of every token, if they were asked for."""
    logits: NDArray[np.float32] | None
    """[tokens, vocabulary], if they were asked for."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of one prompt."""

    prompt: tuple[int, ...]
    outputs: tuple[Output, ...]
    """One, or `n`, or the best of beam search, the best first."""
    usage: Usage
    prompt_logprobs: tuple[Logprobs, ...] = ()
    """Of every token of the prompt but the first, if they were asked for."""


def generate(
    generator: TokenSource,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    words: Words | None,
    on_piece: OnPiece | None = None,
) -> list[Result]:
    """All prompts at once; results are in the order of the prompts, whichever is ready first."""
    wanted = [_Wanted(tuple(prompt), params, words, generator) for prompt in prompts]
    _add(generator, wanted)
    while generator.has_work:
        for news in generator.step():
            number = int(news.request)
            for piece in wanted[number].take(news):
                if on_piece:
                    on_piece(number, news.index, piece)
            if wanted[number].ends_before(news):
                generator.cancel(news.request, news.index)
    return [one.result() for one in wanted]


def check(
    prompts: Sequence[Sequence[int]], params: SamplingParams, limits: Limits, num_blocks: int | None
) -> None:
    """Refuse what an engine of these limits would refuse; None where the size of its cache is not known."""
    blocks = sys.maxsize if num_blocks is None else num_blocks
    for number, prompt in enumerate(prompts):
        with _named(number):
            check_request(Request(str(number), tuple(prompt), params), limits, blocks)


@contextmanager
def _named(number: int) -> Iterator[None]:
    """Say whose error it is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"prompt {number}: {error}") from error


def _add(generator: TokenSource, wanted: Sequence[_Wanted]) -> None:
    """All or none: one that can never be done is found before work is done for the others."""
    for number, one in enumerate(wanted):
        try:
            with _named(number):
                generator.add(Request(str(number), one.prompt, one.params))
        except UserError:
            for added in range(number):
                generator.cancel(str(added))
            raise


class _Wanted:
    """A prompt and its texts as they grow."""

    def __init__(
        self, prompt: tuple[int, ...], params: SamplingParams, words: Words | None, source: TokenSource
    ) -> None:
        self.prompt, self.params = prompt, params
        self._cached_tokens = 0
        self._prompt_logprobs: tuple[Logprobs, ...] = ()
        room = source.limits.max_seq_len - len(prompt)
        bounded = _bounded(params, room)
        self._texts = [_Text(stops.Output(bounded, words, source.eos)) for _ in range(params.n)]
        self._has_words = words is not None

    def take(self, news: Tokens) -> list[Piece]:
        """What the news add to their text, up to its end."""
        if news.usage:
            self._cached_tokens = max(self._cached_tokens, news.usage.cached_tokens)
        self._prompt_logprobs = self._prompt_logprobs or news.prompt_logprobs
        return self._texts[news.index].take(news)

    def ends_before(self, news: Tokens) -> bool:
        """Whether the news' text has ended while its tokens still come: by a stop string."""
        return news.finish is None and self._texts[news.index].finish is not None

    def result(self) -> Result:
        outputs = tuple(text.output(self._has_words) for text in self._texts)
        generated = sum(len(output.tokens) for output in outputs)
        usage = Usage(len(self.prompt), generated, self._cached_tokens)
        return Result(prompt=self.prompt, outputs=outputs, usage=usage, prompt_logprobs=self._prompt_logprobs)


def _bounded(params: SamplingParams, room: int) -> SamplingParams:
    """An engine's longest sequence ends a text as `max_tokens` does. No room is for the engine to refuse."""
    most = max(1, min(params.max_tokens, room))
    return replace(params, max_tokens=most, min_tokens=min(params.min_tokens, most))


@dataclass
class _Text:
    """One text as it grows."""

    ending: stops.Output
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None
    score: float | None = None
    logprobs: list[Logprobs] = field(default_factory=list)
    logits: list[bytes] = field(default_factory=list)

    def take(self, news: Tokens) -> list[Piece]:
        pieces = []
        for token in news.tokens:
            if self.finish:  # a stop string, and what came after it before that was known
                break
            piece = self.ending.add(token)
            self.tokens.append(token)
            self.pieces.append(piece.text)
            self.finish = piece.finish_reason
            pieces.append(piece)
        self.logprobs += news.logprobs[: len(pieces)]
        self.logits += news.logits[: len(pieces)]
        self.score = news.score
        return pieces

    def output(self, has_words: bool) -> Output:
        assert self.finish, "a text that gets no more tokens has ended"
        return Output(
            tokens=tuple(self.tokens),
            text="".join(self.pieces) if has_words else None,
            finish=self.finish,
            score=self.score,
            logprobs=tuple(self.logprobs),
            logits=_rows(self.logits),
        )


def _rows(logits: Sequence[bytes]) -> NDArray[np.float32] | None:
    if not logits:
        return None
    return np.frombuffer(b"".join(logits), np.float32).reshape(len(logits), -1)
