"""Grammars by llguidance: which bytes may come next. What it cannot do exactly, it refuses.

Its limits count work, not seconds: what one rank can compile and follow, every rank can.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import lcm
from typing import Any, cast

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from actors.grammar import JSON_OPTIONS, Grammar
from builders.errors import UserError

_MOST_MULTIPLE = 10_000
"""Of a `multipleOf`, in its last digit's units, or of several at once: it takes as many states."""
_LONGEST_ERROR = 240


def matcher_of(grammar: Grammar, words: LLTokenizer) -> LLMatcher:
    """At the beginning of a text. Raises UserError for what is no grammar, or too much of one."""
    try:
        source = _source(grammar)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{grammar.kind}: {_line(str(error))}") from error
    matcher = LLMatcher(words, source, log_level=0, limits=LLParserLimits(verbose_errors=False))
    check(matcher, grammar)
    return matcher


def check(matcher: LLMatcher, grammar: Grammar) -> None:
    """Raises UserError where the grammar has turned out to be too much."""
    if matcher.is_error():
        raise UserError(f"{grammar.kind}: {_line(matcher.get_error())}")


def byte_words(special: Sequence[str] = ()) -> LLTokenizer:
    """A word for every byte, and special ones: enough to tell whether a grammar can be compiled and begun."""
    words = _Bytes(special)
    return LLTokenizer(TokenizerWrapper(words), n_vocab=len(words.tokens), eos_token=[256])


class _Bytes:
    """A tokenizer as llguidance expects it."""

    eos_token_id, bos_token_id = 256, None

    def __init__(self, special: Sequence[str]) -> None:
        names = [name.encode() for name in ("<end>", *special)]
        self.tokens = [*(bytes([value]) for value in range(256)), *names]
        self.special_token_ids = [*range(256, len(self.tokens))]

    def __call__(self, text: bytes) -> list[int]:
        return [*text]


def _source(grammar: Grammar) -> str:
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    if grammar.kind == "lark":
        return LLMatcher.grammar_from_lark(grammar.text)
    check_multiples(json.loads(grammar.text))
    return LLMatcher.grammar_from_json_schema(grammar.text, overrides=cast(Any, JSON_OPTIONS))


def check_multiples(schema: Any) -> None:
    """This alone is not bounded by llguidance's limits."""
    both = lcm(*(Fraction(str(one)).numerator for one in _multiples(schema)))
    if both > _MOST_MULTIPLE:
        raise ValueError(f"multipleOf: {both} units of the last digit, at most {_MOST_MULTIPLE} are possible")


def _multiples(part: Any) -> Iterator[int | float]:
    if isinstance(part, dict):
        found = part.get("multipleOf")
        if isinstance(found, int | float) and 0 < abs(found) < float("inf"):
            yield found
    for one in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _multiples(one)


def _line(error: str) -> str:
    """On one line, and not all that a caller may have written."""
    words = " ".join(error.split()).removesuffix(" <non-verbose/>")
    return words if len(words) <= _LONGEST_ERROR else words[:_LONGEST_ERROR] + "..."
