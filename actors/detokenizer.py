"""Tokens to text as they come: no piece ever has half a character, and a text costs time by its length.

The pieces together are what the tokenizer makes of all the tokens. One case differs: a tokenizer with byte
tokens gives up a whole run of them where one is wrong, with its complete characters; here these stay.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import cast

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_HALF = "\N{REPLACEMENT CHARACTER}"
"""What decoders put for bytes that are no character, or not yet one."""
_CONTEXT = 8
"""Tokens that are decoded again with every new one, as decoders look at the neighbours of a token. In any of
the tokenizers they have three bytes at least: all that an unfinished character can have."""


class Words:
    """A tokenizer's tokens, for all texts."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        skip_special_tokens: bool = True,
        shown: Collection[str] = (),
    ) -> None:
        """Of special tokens, those that are to be `shown` are never skipped."""
        self._tokenizer = tokenizer
        self._decode = _decoder(tokenizer)
        special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        skipped = special | set(tokenizer.all_special_ids) if skip_special_tokens else set()
        self._skipped = {token for token in skipped if tokenizer.convert_ids_to_tokens(token) not in shown}
        self._names: dict[int, str | None] = {}
        self._bytes: dict[int, bytes | None] = {}

    def name(self, token: int) -> str | None:
        """How a token that has text is spelt. Models have more rows than tokenizers have words."""
        if token not in self._names:
            name = None if token in self._skipped else self._tokenizer.convert_ids_to_tokens(token)
            self._names[token] = cast("str | None", name)
        return self._names[token]

    def byte(self, token: int) -> bytes | None:
        """The byte that a byte token stands for."""
        if token not in self._bytes:
            name = self.name(token) or ""
            is_byte = _BYTE.fullmatch(name) is not None and self.text([token]) != name
            self._bytes[token] = bytes.fromhex(name[3:5]) if is_byte else None
        return self._bytes[token]

    def text(self, tokens: Sequence[int]) -> str:
        """Of tokens that have names."""
        return self._decode(list(tokens))


def _decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int]], str]:
    """The tokenizer's own; where that only passes tokens on, what it passes them to: a third of the time."""
    if getattr(type(tokenizer), "_decode", None) is PreTrainedTokenizerFast._decode:
        backend = cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer
        return partial(backend.decode, skip_special_tokens=False)
    own = partial(tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return cast("Callable[[list[int]], str]", own)


class Detokenizer:
    """The text of one request."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self._window: list[int] = []
        """The newest tokens, and as many before them as their text depends on. Byte tokens are not in it,
        unless a text begins with them."""
        self._shown = 0
        """Characters of the window's text that have been given."""
        self._run: list[int] = []
        """Byte tokens of a character that is not complete."""

    def add(self, token: int) -> str:
        """The text that this token completes."""
        if not self._words.name(token):
            return ""
        if self._words.byte(token) is not None:
            return self._rest() + self._with_byte(token)
        broken = self._broken_off()
        self._window.append(token)
        text = self._words.text(self._window)
        # An open end is at most one replacement character, and the next token may complete it.
        new = self._taken(text, len(text) - text.endswith(_HALF))
        if len(self._window) >= 2 * _CONTEXT:
            self._forget(held=len(text) - self._shown)
        return broken + new

    def flush(self) -> str:
        """What was held back, at the end."""
        return self._rest() + self._broken_off()

    def _with_byte(self, token: int) -> str:
        self._run.append(token)
        try:
            character = codecs.getincrementaldecoder("utf-8")().decode(self._run_bytes())
        except UnicodeDecodeError:
            if self._run == [token]:
                return self._broken_off()
            # The others are no character; this one may begin another.
            self._run.pop()
            return self._broken_off() + self._with_byte(token)
        return self._completed(character) if character else ""

    def _completed(self, character: str) -> str:
        run, self._run = self._run, []
        return self._between(run, character)

    def _broken_off(self) -> str:
        """Bytes that will be no character, each by itself."""
        run, self._run = self._run, []
        return self._between(run, _HALF * len(run))

    def _between(self, run: list[int], text: str) -> str:
        """The text of a run of byte tokens; where it begins all, the tokenizer's, and the run is context."""
        if self._window or not run:
            return text
        self._window, text = run, self._words.text(run)
        self._shown = len(text)
        return text

    def _run_bytes(self) -> bytes:
        return b"".join(self._words.byte(token) or b"" for token in self._run)

    def _rest(self) -> str:
        """What the window still holds."""
        text = self._words.text(self._window) if self._window else ""
        return self._taken(text, len(text))

    def _taken(self, text: str, end: int) -> str:
        new = text[self._shown : end]
        self._shown = max(self._shown, end)
        return new

    def _forget(self, held: int) -> None:
        """Keep the context alone."""
        del self._window[:-_CONTEXT]
        self._shown = max(0, len(self._words.text(self._window)) - held)
