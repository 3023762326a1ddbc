"""Grammars are compiled before anybody is asked to follow them: in a process beside, and each one once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from actors.grammar import Grammar
from cluster.api_config import ApiConfig
from cluster.api_errors import ApiError, invalid
from cluster.grammar_child import GrammarChild
from cluster.structured import Form

_KNOWN = 1024
"""Grammars of which it is remembered whether they can be followed."""


class GrammarChecks:
    """For one event loop. What is too large is refused at once, and what takes too long to compile."""

    def __init__(self, config: ApiConfig) -> None:
        self._config = config
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar checks")
        self._child = GrammarChild(config.grammar_timeout_s)
        self._known: OrderedDict[Grammar, str | None] = OrderedDict()

    async def check(self, form: Form) -> None:
        """Raises ApiError for what no text can be held to."""
        if (size := len(form.grammar.text)) > (most := self._config.max_grammar_chars):
            raise _refused(form, f"{size} characters, at most {most} are taken")
        if form.grammar not in self._known:
            why = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._child.mistake, form.grammar
            )
            self._known[form.grammar] = why
            if len(self._known) > _KNOWN:
                self._known.popitem(last=False)
        if why := self._known[form.grammar]:
            raise _refused(form, why)

    def close(self) -> None:
        """Does not wait for a grammar that is being compiled."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._child.close()


def _refused(form: Form, why: str) -> ApiError:
    return invalid(f"Invalid '{form.param}': {why}", form.param, "invalid_value")
