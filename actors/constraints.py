"""Slots whose texts are held to a grammar: which tokens each may get next.

A mask is computed on the host, from all of a text: so the last token of such a text comes with the plan, in a
run, and a step that gives it the next one is planned when the last one's result is known. Nobody else waits
for that: masks are made while the device computes. Grammars are compiled in a thread from the moment of
admission; a step with a text whose grammar is not compiled by then waits for it, so whoever takes requests
bounds what that takes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from llguidance.numpy import fill_next_token_bitmask_par
from numpy.typing import NDArray
from torch import Tensor

from actors.filters import NEVER
from actors.grammar import Grammar
from actors.matchers import check, matcher_of
from actors.sampling_params import SamplingParams
from builders.cuda.steps import there
from builders.errors import UserError

Words = NDArray[np.int32]
"""A bit for every token, the first in the lowest."""
_KEPT = 64
"""Compiled grammars that nobody uses any more."""


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """On the device: what some rows may get."""

    rows: Tensor
    """[K]"""
    bits: Tensor
    """[K, V / 32] int32"""
    only_ends: Tensor
    """[K] bool: nothing is left to say, however few tokens that were."""

    def applied(self, scores: Tensor) -> Tensor:
        """Scores [R, V], and minus infinity for what these rows may not get."""
        refused = ~_spread(self.bits)[:, : scores.shape[1]]
        return scores.index_copy(0, self.rows, scores[self.rows].masked_fill(refused, NEVER))

    def but_ends(self, where: Tensor) -> Tensor:
        """Rows [R] bool without those that can do nothing but end."""
        return where.index_copy(0, self.rows, where[self.rows] & ~self.only_ends)


def _spread(bits: Tensor) -> Tensor:
    """[K, V] bool"""
    if bits.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(bits.numpy().view(np.uint8), axis=1, bitorder="little")).bool()
    shifts = torch.arange(32, dtype=torch.int32, device=bits.device)
    return (bits[:, :, None] >> shifts & 1).bool().flatten(1)


@dataclass(kw_only=True)
class _Text:
    """A slot's, as far as it is known."""

    grammar: Grammar
    matcher: LLMatcher
    eos: Words
    """Never among what a grammar is about."""
    ends: Words
    """Allowed where the text may end."""
    barred: Words
    """What may not come before `min_tokens`."""
    has_ended: bool = False
    is_lost: bool = False
    """A token came that was allowed, and is none of the grammar's."""

    def add(self, token: int) -> None:
        """An end that did not end the text is the last that the grammar hears of."""
        if not self.has_ended and self.matcher.try_consume_tokens([token]) == 0:
            self.has_ended = True
            self.is_lost = not (self.ends | self.eos)[token // 32] >> token % 32 & 1

    def close(self, words: Words) -> bool:
        """Ends, where there may be one; whether there is nothing else."""
        check(self.matcher, self.grammar)
        if self.is_lost:
            raise UserError(f"{self.grammar.kind}: the tokenizer has a part of it in a token that is no text")
        words &= ~self.eos
        if self.has_ended or self.matcher.is_stopped():
            words[:] = 0
        if self.has_ended or self.matcher.is_accepting():
            words |= self.ends
            if not words.any():
                words |= self.eos
        if not words.any():
            raise UserError(f"{self.grammar.kind}: no token of the model goes on with the text")
        return not (words & ~self.barred).any()


class Constraints:
    """Of one rank. What goes wrong with a grammar ends its text, and no other."""

    def __init__(
        self, words: Callable[[], LLTokenizer], vocab_size: int, ends: Collection[int], device: torch.device
    ) -> None:
        """`words` is called once, in a thread."""
        self._vocab_size, self._device = vocab_size, device
        self._ends = frozenset(end for end in ends if end < vocab_size)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        self._words = self._thread.submit(words)
        self._executor: LLExecutor | None = None
        self._all = self._bits(range(vocab_size))
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._texts: dict[int, Future[_Text]] = {}

    def __contains__(self, slot: int) -> bool:
        return slot in self._texts

    def __len__(self) -> int:
        return len(self._texts)

    def admit(self, slot: int, params: SamplingParams, text: Sequence[int]) -> None:
        """From now on; `text` is what it has already."""
        if params.grammar:
            self._texts[slot] = self._thread.submit(self._opened, params.grammar, params, [*text])

    def release(self, slot: int) -> None:
        self._texts.pop(slot, None)

    def add(self, slot: int, token: int) -> None:
        """The slot's text has got this token."""
        found = self._texts[slot]
        if found.exception() is None:
            found.result().add(token)

    def allowed(self, slots: Sequence[int]) -> tuple[Allowed | None, Mapping[int, str]]:
        """Of rows with these slots; and what failed, by row: what such a row gets is of no use."""
        rows = [row for row, slot in enumerate(slots) if slot in self._texts]
        if not rows:
            return None, {}
        texts = [self._texts[slots[row]] for row in rows]
        pairs = zip(rows, texts, strict=True)
        failures = {row: str(error) for row, text in pairs if (error := text.exception())}
        bits = np.full((len(rows), self._width()), -1, dtype=np.int32)
        begun = [(place, text.result()) for place, text in enumerate(texts) if not text.exception()]
        matchers = [(text.matcher, place) for place, text in begun if not text.has_ended]
        if matchers:
            fill_next_token_bitmask_par(self._threads(), matchers, bits)
        bits = bits[:, : len(self._all)] & self._all
        only_ends = np.zeros(len(rows), dtype=bool)
        for place, text in begun:
            try:
                only_ends[place] = text.close(bits[place])
            except UserError as error:
                failures[rows[place]] = str(error)
        return self._there(rows, bits, only_ends), failures

    def everything(self) -> Allowed:
        """For one row, as much as there is: to have the device load what it takes."""
        return self._there([0], self._all[None], np.zeros(1, dtype=bool))

    def _there(self, rows: Sequence[int], bits: Words, only_ends: NDArray[np.bool_]) -> Allowed:
        parts = (torch.tensor(rows), torch.from_numpy(bits), torch.from_numpy(only_ends))
        rows_, bits_, only_ends_ = (there(part, self._device) for part in parts)
        return Allowed(rows=rows_, bits=bits_, only_ends=only_ends_)

    def _threads(self) -> LLExecutor:
        self._executor = self._executor or LLExecutor()
        return self._executor

    def _width(self) -> int:
        """Of a mask as llguidance writes it: tokenizers may have more words than the model has rows."""
        words = self._words
        return -(-(self._vocab_size if words.exception() else words.result().vocab_size) // 32)

    def _bits(self, tokens: Collection[int]) -> Words:
        flags = np.zeros(-(-self._vocab_size // 32) * 32, dtype=np.uint8)
        flags[[*tokens]] = 1
        return np.packbits(flags, bitorder="little").view(np.int32)

    # In the thread.

    def _opened(self, grammar: Grammar, params: SamplingParams, text: list[int]) -> _Text:
        stops = frozenset(params.stop_token_ids)
        eos = frozenset() if params.ignore_eos else self._ends
        matcher = self._matcher(grammar)
        found = _Text(
            grammar=grammar,
            matcher=matcher,
            eos=self._bits(self._ends),
            ends=self._bits(eos | stops),
            barred=self._bits(eos | stops),
        )
        for token in text:
            found.add(token)
        return found

    def _matcher(self, grammar: Grammar) -> LLMatcher:
        known = self._compiled.get(grammar)
        if known is None:
            known = self._compiled[grammar] = matcher_of(grammar, self._words.result())
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return known.deep_copy()
