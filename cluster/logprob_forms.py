"""Log-probabilities as chat and as completions give them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from actors.detokenizer import Detokenizer, Words
from actors.messages import Logprobs
from cluster.api_answers import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from cluster.growing_text import Scored
from cluster.token_texts import TokenTexts

_LEAST = -9999.0
"""In place of minus infinity, which JSON does not have; as OpenAI does."""


def chat_logprobs(scored: Iterable[Scored], texts: TokenTexts) -> ChatLogprobs:
    """A list of tokens, with what each could have been."""
    return ChatLogprobs([_token_logprob(token, logprobs, texts) for token, logprobs in scored])


def _token_logprob(token: int, logprobs: Logprobs, texts: TokenTexts) -> TokenLogprob:
    top = [
        TopLogprob(texts.text(other), _number(value), list(texts.spelling(other)))
        for other, value in zip(logprobs.tokens, logprobs.values, strict=True)
    ]
    return TokenLogprob(texts.text(token), _number(logprobs.sampled), list(texts.spelling(token)), top)


def _number(value: float) -> float:
    return max(value, _LEAST)


def of_prompt(prompt: Sequence[int], logprobs: Sequence[Logprobs]) -> list[tuple[int, Logprobs | None]]:
    """A prompt's tokens are scored by those before them: the first is not."""
    return list(zip(prompt, (None, *logprobs), strict=True))


@dataclass
class CompletionScores:
    """Of one text: offsets go on from part to part, by the text that tokens make together."""

    texts: TokenTexts
    words: Words
    with_top: bool
    """Something beside the tokens themselves was asked for."""
    offset: int = 0

    def __post_init__(self) -> None:
        self._text = Detokenizer(self.words)

    def of(
        self, scored: Iterable[Scored], before: Iterable[tuple[int, Logprobs | None]] = (), prompt: str = ""
    ) -> CompletionLogprobs:
        """Four lists of one length; the text may begin with its prompt, and the tokens `before` it."""
        found = CompletionLogprobs([], [], [] if self.with_top else None, [])
        for token, logprobs in before:
            self._add(found, token, logprobs)
            self.offset = min(len(prompt), self.offset + self._length_in(prompt, token))
        if prompt:
            self.offset, self._text = len(prompt), Detokenizer(self.words)
        for token, one in scored:
            self._add(found, token, one)
            self.offset += len(self._text.add(token))
        return found

    def _add(self, found: CompletionLogprobs, token: int, logprobs: Logprobs | None) -> None:
        name = self.texts.label(token)
        found.tokens.append(name)
        found.token_logprobs.append(None if logprobs is None else _number(logprobs.sampled))
        if found.top_logprobs is not None:
            found.top_logprobs.append(None if logprobs is None else self._top(name, logprobs))
        found.text_offset.append(self.offset)

    def _length_in(self, prompt: str, token: int) -> int:
        """What a tokenizer puts around texts is not in them; the same token may be written there, too."""
        if self.words.name(token):
            return len(self._text.add(token))
        name = self.texts.text(token)
        return len(name) if prompt.startswith(name, self.offset) else 0

    def _top(self, name: str, logprobs: Logprobs) -> dict[str, float]:
        """The likeliest first; the token itself is among them in any case."""
        top: dict[str, float] = {}
        for token, value in zip(logprobs.tokens, logprobs.values, strict=True):
            top.setdefault(self.texts.label(token), _number(value))
        top.setdefault(name, _number(logprobs.sampled))
        return top
