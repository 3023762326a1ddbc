"""Chooses tokens from logits on the device, every row as its request wants it.

The order: biases, penalties, grammars, ends that come too early, temperature, top-k, top-p, min-p, a draw.
`sample` never waits for the device. Without grammars it reads nothing from the host but what its `needs` say,
so a CUDA graph can hold it for every number of rows, needs and `layout`.

From equal logits a row's token does not depend on the other rows. Devices differ in the last digit of a
logarithm, so about one draw in a million, between tokens that are nearly even, may differ between them.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from actors.adjustments import Additions, Spoken
from actors.constraints import Allowed
from actors.filters import NEVER, kept_by_min_p, kept_by_top_k, kept_by_top_p
from actors.needs import Needs
from actors.noise import gumbel, places
from actors.sampling_params import SamplingParams
from builders.errors import UserError
from builders.kernels.draw import Wishes


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What was chosen, on the device."""

    tokens: Tensor
    """[R]"""
    logprobs: Tensor | None = None
    """[R] Of the chosen tokens, by the model: before penalties, biases, temperature and filters."""
    best_tokens: Tensor | None = None
    """[R, n] The n likeliest by the model, in order."""
    best_logprobs: Tensor | None = None
    """[R, n]"""


Finder = Callable[[Tensor], Tensor]
"""Gives the place [R] of the largest of every row of [R, V], the first of equals."""


class Drawer(Protocol):
    """Chooses tokens as `Sampler` describes, from scores after penalties, biases and bars."""

    def __call__(
        self, scores: Tensor, slots: Tensor, positions: Tensor, wishes: Wishes, *, scaled: bool
    ) -> Tensor:
        """[R] Scaled: the temperature and top-k have been applied."""


LEAST_TEMPERATURE = 1e-5
"""What is below is taken for this, so that no score overflows."""
_PARTS = 96
"""Into so many parts a row is cut at most."""
_PLAIN = (1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0)
"""A slot's real numbers, here of a greedy request: temperature, top_p, min_p; repetition, presence and
frequency penalties; 1 to draw. Its integers are top_k, the seed, and the first place for an end."""


class Sampler:
    """The state of every slot. A slot is a request's from `admit` to `release`."""

    def __init__(
        self,
        *,
        slots: int,
        vocab_size: int,
        device: torch.device | str = "cpu",
        eos_token_ids: Collection[int] = (),
        drawer: Drawer | None = None,
        finder: Finder | None = None,
    ) -> None:
        """In place of PyTorch's operators, `drawer` draws and `finder` finds the likeliest tokens."""
        self.nobody = slots
        """A slot for rows that only fill up a batch."""
        self._vocab_size, self._drawer = vocab_size, drawer
        self.likeliest: Finder = finder or likeliest_tokens
        self._eos = frozenset(eos_token_ids)
        device = torch.device(device)
        self._reals = torch.tensor(_PLAIN, dtype=torch.float64).repeat(slots + 1, 1).to(device)
        self._integers = torch.zeros(slots + 1, 3, dtype=torch.int64, device=device)
        self._biases = Additions(slots + 1, device)
        self._bars = Additions(slots + 1, device)
        self._spoken = Spoken(slots + 1, vocab_size, device)
        self._tokens = places(vocab_size, device)
        self._needs: dict[int, Needs] = {}
        self._kinds: Counter[Needs] = Counter()
        self.all_needs = Needs()

    @property
    def layout(self) -> int:
        """Graphs that were captured under another one must be captured again."""
        return self._biases.layout + self._bars.layout + self._spoken.layout

    def reserve(self, *, penalized: int) -> None:
        """Take the memory for so many requests with penalties at once now: 5 bytes a token each."""
        self._spoken.reserve(penalized)

    def admit(
        self,
        slot: int,
        params: SamplingParams,
        prompt: Sequence[int],
        *,
        text: Sequence[int] = (),
        index: int = 0,
    ) -> None:
        """Give a free slot to a request. `text` is what it had generated before, if it was interrupted.

        `index` tells apart the several texts of one request with a seed. Ranks that choose together must
        be given a seed: without one, each draws its own.
        """
        if slot in self._needs or not 0 <= slot < self.nobody:
            raise ValueError(f"slot {slot} of {self.nobody} is not free")
        check_tokens(params, prompt, self._vocab_size)
        needs = Needs.of(params)
        self._write(
            slot, params, len(prompt), secrets.randbits(63) if params.seed is None else params.seed + index
        )
        if needs.bias:
            self._biases.put(slot, params.logit_bias)
        if needs.bars:
            self._bars.put(slot, dict.fromkeys(self._ends(params), NEVER))
        if needs.penalties:
            self._spoken.open(slot, prompt, text)
        self._needs[slot] = needs
        self._kinds[needs] += 1
        self.all_needs = Needs.union(self._kinds)

    def _ends(self, params: SamplingParams) -> set[int]:
        eos = set() if params.ignore_eos else {token for token in self._eos if token < self._vocab_size}
        return eos | set(params.stop_token_ids)

    def _write(self, slot: int, params: SamplingParams, prompt_tokens: int, seed: int) -> None:
        penalties = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
        temperature = max(params.temperature, LEAST_TEMPERATURE)
        chance = (1.0, 1.0, 0.0) if params.is_greedy else (temperature, params.top_p, params.min_p)
        reals = (*chance, *penalties, float(not params.is_greedy))
        top_k = 0 if params.is_greedy else min(params.top_k, self._vocab_size)
        integers = (top_k, (seed + 2**63) % 2**64 - 2**63, prompt_tokens + params.min_tokens)
        self._reals[slot].copy_(torch.tensor(reals, dtype=torch.float64), non_blocking=True)
        self._integers[slot].copy_(torch.tensor(integers), non_blocking=True)

    def release(self, slot: int) -> None:
        """The request is done, or will be admitted again."""
        needs = self._needs.pop(slot)
        for additions, used in ((self._biases, needs.bias), (self._bars, needs.bars)):
            if used:
                additions.put(slot, {})
        self._spoken.close(slot)
        self._kinds -= Counter([needs])
        self.all_needs = Needs.union(self._kinds)

    def needs(self, slots: Iterable[int]) -> Needs:
        """What the requests in these slots need."""
        return Needs.union(self._needs[slot] for slot in slots if slot != self.nobody)

    def sample(
        self,
        logits: Tensor,
        slots: Tensor,
        positions: Tensor,
        needs: Needs | None = None,
        allowed: Allowed | None = None,
    ) -> Sampled:
        """Choose a token for every row of logits [R, V] float32, and count it where penalties need that.

        slots [R] are the rows' slots; positions [R] are the places of the new tokens in their sequences, the
        prompt included. `needs` must cover the slots'; without it, those of all admitted requests are met. A
        slot with penalties can have one row: the next token's score depends on what this one is. `allowed` is
        what grammars let some rows have.
        """
        needs = needs or self.all_needs
        scores = self.adjusted(logits, slots, positions, needs, allowed)
        tokens = self._chosen(scores, slots, positions, needs)
        if needs.penalties:
            self.count(slots, tokens)
        return self._told(logits, tokens, needs.logprobs)

    def adjusted(
        self,
        scores: Tensor,
        slots: Tensor,
        positions: Tensor,
        needs: Needs | None = None,
        allowed: Allowed | None = None,
    ) -> Tensor:
        """Scores [R, V] after biases, penalties, grammars and bars, which is all that beam search wants."""
        needs = needs or self.all_needs
        if needs.bias:
            scores = self._biases.added(scores, slots)
        if needs.penalties:
            repetition, presence, frequency = self._reals[slots][:, 3:6].float().unbind(-1)
            scores = self._spoken.penalized(scores, slots, (repetition, presence, frequency))
        if allowed:
            scores = allowed.applied(scores)
        if needs.bars:
            early = positions < self._integers[slots][:, 2]
            scores = self._bars.added(scores, slots, allowed.but_ends(early) if allowed else early)
        return scores

    def _chosen(self, scores: Tensor, slots: Tensor, positions: Tensor, needs: Needs) -> Tensor:
        """Greedily or by a draw."""
        if not needs.draw:
            return self.likeliest(scores)
        if self._drawer is None:
            return self.likeliest(self._drawable(scores, slots, positions, needs))
        if needs.both:
            scores = scores / self._reals[slots][:, :1].float()
            scores = kept_by_top_k(scores, self._integers[slots][:, 0], needs.top_k)
        wishes = Wishes(reals=self._reals, integers=self._integers)
        return self._drawer(scores, slots, positions, wishes, scaled=needs.both)

    def _drawable(self, scores: Tensor, slots: Tensor, positions: Tensor, needs: Needs) -> Tensor:
        """Scores whose argmax is a draw, or the likeliest in greedy rows."""
        reals, integers = self._reals[slots], self._integers[slots]
        scores = scores / reals[:, :1].float()
        if needs.top_k:
            scores = kept_by_top_k(scores, integers[:, 0], needs.top_k)
        if needs.top_p:
            scores = kept_by_top_p(scores, reals[:, 1])
        if needs.min_p:
            scores = kept_by_min_p(scores, reals[:, 2].float())
        return scores + gumbel(integers[:, 1], positions, self._tokens).mul_(reals[:, 6:].float())

    def _told(self, logits: Tensor, tokens: Tensor, num_best: int) -> Sampled:
        if num_best < 0:
            return Sampled(tokens=tokens)
        total = logits.logsumexp(-1, keepdim=True)
        best = logits.topk(min(num_best, logits.shape[-1]))
        return Sampled(
            tokens=tokens,
            logprobs=(logits.gather(1, tokens[:, None]) - total)[:, 0],
            best_tokens=best.indices,
            best_logprobs=best.values - total,
        )

    def count(self, slots: Tensor, tokens: Tensor) -> None:
        """These tokens [R], which `sample` did not choose, are now part of the texts in these slots [R]."""
        self._spoken.count(slots, tokens)

    def copy(self, sources: Tensor, targets: Tensor) -> None:
        """Texts go on in other slots, all at once, as the beams of a search do."""
        self._spoken.copy(sources, targets)


def likeliest_tokens(scores: Tensor) -> Tensor:
    """The place [R] of the largest of every row of [R, V], the first of equals."""
    return scores.argmax(-1) if scores.device.type == "cpu" else in_parts(scores)


def in_parts(scores: Tensor) -> Tensor:
    """The same: a GPU reads long rows faster in parts."""
    size = scores.shape[-1]
    parts = next((parts for parts in range(_PARTS, 1, -1) if size % parts == 0), 1)
    best, places = scores.unflatten(-1, (parts, size // parts)).max(-1)
    part = best.argmax(-1, keepdim=True)
    return (places.gather(1, part) + part * (size // parts))[:, 0]


def check_tokens(params: SamplingParams, prompt: Sequence[int], vocab_size: int) -> None:
    """Refuse tokens that the model does not have."""
    for name, tokens in (
        ("logit_bias", params.logit_bias),
        ("stop_token_ids", params.stop_token_ids),
        ("prompt", prompt),
    ):
        if tokens and (min(tokens) < 0 or max(tokens) >= vocab_size):
            raise UserError(f"{name}: tokens must be from 0 to {vocab_size - 1}")
