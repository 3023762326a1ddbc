"""Grammars are compiled before anybody is asked to follow them: in a thread, and each one once."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
from llguidance import LLTokenizer
from llguidance.numpy import fill_next_token_bitmask

from actors.grammar import Grammar
from actors.matchers import byte_words, check, matcher_of
from builders.errors import UserError
from cluster.api_config import ApiConfig
from cluster.api_errors import ApiError, invalid
from cluster.structured import Form
from cluster.tool_formats import FORMATS

_KNOWN = 1024
"""Grammars of which it is remembered whether they can be followed."""
_STEPS = 64


class GrammarChecks:
    """For one event loop. What is too large is refused at once; compiling is bounded by what it may do."""

    def __init__(self, config: ApiConfig) -> None:
        self._config = config
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar checks")
        self._known: OrderedDict[Grammar, str | None] = OrderedDict()

    async def check(self, form: Form) -> None:
        """Raises ApiError for what no text can be held to."""
        if (size := len(form.grammar.text)) > (most := self._config.max_grammar_chars):
            raise _refused(form, f"{size} characters, at most {most} are taken")
        if form.grammar not in self._known:
            why = await asyncio.get_running_loop().run_in_executor(self._thread, self._mistake, form.grammar)
            self._known[form.grammar] = why
            if len(self._known) > _KNOWN:
                self._known.popitem(last=False)
        if why := self._known[form.grammar]:
            raise _refused(form, why)

    @cached_property
    def _words(self) -> LLTokenizer:
        """As no model has them, and quickly made."""
        return byte_words([mark for form in FORMATS.values() for mark in form.marks])

    def _mistake(self, grammar: Grammar) -> str | None:
        """As far as the first choice, where what is too wide shows."""
        began = time.perf_counter()
        try:
            self._begin(grammar)
        except UserError as error:
            return str(error)
        took, most = time.perf_counter() - began, self._config.grammar_timeout_s
        return f"{grammar.kind}: takes {took:.1f} s to compile, at most {most:g} s" if took > most else None

    def _begin(self, grammar: Grammar) -> None:
        matcher = matcher_of(grammar, self._words)
        bits = np.zeros((1, -(-self._words.vocab_size // 32)), dtype=np.int32)
        for _ in range(_STEPS):
            fill_next_token_bitmask(matcher, bits)
            check(matcher, grammar)
            forced = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))
            if len(forced) != 1 or matcher.is_stopped():
                break
            matcher.consume_token(int(forced[0]))


def _refused(form: Form, why: str) -> ApiError:
    return invalid(f"Invalid '{form.param}': {why}", form.param, "invalid_value")
