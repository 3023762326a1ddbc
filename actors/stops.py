"""Where a text ends, and why: end tokens, stop strings, the number of tokens."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from msgspec import Struct

from actors.detokenizer import Detokenizer, Words
from actors.sampling_params import SamplingParams
from builders.errors import UserError

FinishReason = Literal["stop", "length"]
"""As OpenAI names them."""


class Piece(Struct, frozen=True, kw_only=True):
    """What a token adds to its text."""

    text: str = ""
    """Final: nothing of it will be taken back."""
    finish_reason: FinishReason | None = None
    stopped_by: int | str | None = None
    """The stop string or the end token, which is no part of the text."""


class StopStrings:
    """Looks for the first stop string that is complete, whatever pieces the text comes in.

    Knuth, Morris and Pratt's search for all of them at once, a character at a time. Of several that end at
    one character, the longest counts.
    """

    def __init__(self, stops: Collection[str]) -> None:
        self._stops = sorted(stops, key=len, reverse=True)
        self._links = [_links(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)
        self._held = ""

    def add(self, text: str, *, may_end: bool = True) -> tuple[str, str | None]:
        """What is certainly text, and the stop string that ends it. Where it may not end, stops are text."""
        if not self._stops:
            return text, None
        self._held += text
        start = len(self._held) - len(text)
        for end, character in enumerate(text, start + 1):
            stop = self._advance(character)
            if stop is not None and may_end:
                return self._held[: end - len(stop)], stop
        return self._split(max(self._matched, default=0)), None

    def flush(self) -> str:
        return self._split(0)

    def _split(self, held: int) -> str:
        """Give all but so many characters, which may be the start of a stop string."""
        end = len(self._held) - held
        certain, self._held = self._held[:end], self._held[end:]
        return certain

    def _advance(self, character: str) -> str | None:
        found = None
        for index, (stop, links) in enumerate(zip(self._stops, self._links, strict=True)):
            matched = self._matched[index]
            while matched and stop[matched] != character:
                matched = links[matched]
            matched += stop[matched] == character
            if matched == len(stop):
                found = found or stop
                matched = links[matched]
            self._matched[index] = matched
        return found


def _links(stop: str) -> list[int]:
    """For every number of matched characters, how many still are when the next one is another."""
    links = [0, 0]
    for end in range(1, len(stop)):
        matched = links[end]
        while matched and stop[matched] != stop[end]:
            matched = links[matched]
        links.append(matched + (stop[matched] == stop[end]))
    return links


class Output:
    """The text of one request as its tokens come, up to its end. Without words there is no text."""

    def __init__(self, params: SamplingParams, words: Words | None, eos_token_ids: Collection[int]) -> None:
        if words is None and params.stop:
            raise UserError(f"stop={list(params.stop)}: the model has no tokenizer; use stop_token_ids")
        if "" in params.stop:
            raise UserError("stop: an empty string is everywhere; leave it out")
        eos = () if params.ignore_eos else eos_token_ids
        self._ends = frozenset(params.stop_token_ids) | frozenset(eos)
        self._params = params
        self._detokenizer = Detokenizer(words) if words else None
        self._stops = StopStrings(params.stop)
        self.num_tokens = 0
        """Generated so far, an end token included."""

    def add(self, token: int) -> Piece:
        """What follows from the next token. After a finish reason there must be none."""
        may_end = self.num_tokens >= self._params.min_tokens
        self.num_tokens += 1
        if may_end and token in self._ends:
            return Piece(text=self._flushed(), finish_reason="stop", stopped_by=token)
        new = self._detokenizer.add(token) if self._detokenizer else ""
        text, stop = self._stops.add(new, may_end=may_end)
        if stop is not None:
            return Piece(text=text, finish_reason="stop", stopped_by=stop)
        if self.num_tokens >= self._params.max_tokens:
            return Piece(text=text + self._flushed(), finish_reason="length")
        return Piece(text=text)

    def _flushed(self) -> str:
        """All that was held back: bytes that stay half a character, and the start of a stop string."""
        rest = self._detokenizer.flush() if self._detokenizer else ""
        text, _ = self._stops.add(rest, may_end=False)
        return text + self._stops.flush()
