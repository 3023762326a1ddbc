"""Beam search as Transformers has it: a step extends every beam by its likeliest tokens and keeps the best.

The device finds the likeliest tokens of every row, whatever search or request that row belongs to; the rest
is a few dozen numbers a search and happens here. Scores are float32, as they are on the device, so that
rounding is alike.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from actors.sampling_params import SamplingParams


def likeliest(scores: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The log-probabilities and tokens [R, num] with which beams go on, from log-probabilities [R, V]."""
    best = scores.topk(min(num, scores.shape[-1]), dim=-1)
    return best.values, best.indices


def log_probabilities(logits: Tensor) -> Tensor:
    """What beam search adds up. Penalties and biases come after, and nothing is normalized again."""
    return torch.log_softmax(logits.float(), dim=-1)


class Extended(NamedTuple):
    """A beam, lengthened by a token."""

    beam: int
    """Which of the beams that ran."""
    token: int
    score: float
    """Sum of log-probabilities; of a finished text, what it is ranked by."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a step makes of a search; the best first."""

    kept: tuple[Extended, ...]
    """Those that go on; none when it is done."""
    finished: tuple[Extended, ...]
    """New texts that have ended, among the best of all so far."""
    done: bool


@dataclass(kw_only=True)
class BeamSearch:
    """One request's search: it begins with one beam, the prompt. The caller keeps texts and sums."""

    params: SamplingParams
    ends: Collection[int]
    """The tokens that end a text."""
    max_tokens: int
    """As the request wants, or less where the engine has less room."""
    length: int = 0
    """Tokens that every beam has."""
    _finished: list[np.float32] = field(default_factory=list)
    """What the best finished texts are ranked by, best first."""

    @property
    def num_candidates(self) -> int:
        """How many of the likeliest tokens of each beam a step needs: even if ends are, beams are left."""
        return max(2, 1 + len(self.ends)) * self.params.num_beams

    def step(
        self, sums: Sequence[float], scores: Sequence[Sequence[float]], tokens: Sequence[Sequence[int]]
    ) -> Decision:
        """What goes on after each beam, which has this sum, was extended by its likeliest tokens."""
        candidates = self._candidates(sums, scores, tokens)
        self.length += 1
        most = self.params.num_beams
        # Only the best of all may finish: the others are there so that enough go on.
        finished = self._finish([candidate for candidate in candidates[:most] if self._ends(candidate)])
        kept = [candidate for candidate in candidates if not self._ends(candidate)][:most]
        done = not kept or self._is_settled(kept[0].score)
        return Decision(
            kept=() if done else tuple(Extended(c.beam, c.token, float(c.score)) for c in kept),
            finished=finished,
            done=done,
        )

    def _ends(self, candidate: _Candidate) -> bool:
        return self.length >= self.max_tokens or candidate.token in self.ends

    def _candidates(
        self, sums: Sequence[float], scores: Sequence[Sequence[float]], tokens: Sequence[Sequence[int]]
    ) -> list[_Candidate]:
        """The best continuations of all beams together, in order."""
        found = [
            _Candidate(np.float32(score) + np.float32(sums[beam]), beam, token)
            for beam, row in enumerate(scores)
            for score, token in zip(row, tokens[beam], strict=True)
        ]
        return sorted(found, key=lambda candidate: -candidate.score)[: self.num_candidates]

    def _finish(self, enders: list[_Candidate]) -> tuple[Extended, ...]:
        """Keep the best so many of the finished texts, old and new; the new ones among them."""
        ranked = [(self._ranked(c.score), c) for c in enders]
        merged = [*((score, None) for score in self._finished), *ranked]
        best = sorted(merged, key=lambda finished: -finished[0])[: self.params.num_beams]
        self._finished = [score for score, _ in best]
        return tuple(Extended(c.beam, c.token, float(score)) for score, c in best if c)

    def _is_settled(self, best: np.float32) -> bool:
        """Whether no beam can be hoped to become better than the worst finished text.

        This looks at the best beam's score at its present length, as Transformers does; with a positive
        length penalty a longer text could still win.
        """
        if len(self._finished) < self.params.num_beams:
            return False
        return self.params.early_stopping or bool(self._ranked(best) <= self._finished[-1])

    def _ranked(self, score: np.float32) -> np.float32:
        with np.errstate(over="ignore", divide="ignore", under="ignore"):
            return score / np.float32(np.float64(self.length) ** self.params.length_penalty)


class _Candidate(NamedTuple):
    score: np.float32
    beam: int
    token: int
