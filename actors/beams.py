"""Beam search as Transformers has it: a step extends every beam by its likeliest tokens and keeps the best.

The device finds the likeliest tokens of every row, whatever search or request that row belongs to; the rest
is a few dozen numbers a search and happens here. Scores are float32, as they are on the device, so that
rounding is alike.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
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


class _Node(NamedTuple):
    """The last token of a text, and what comes before it: beams share their beginnings."""

    token: int
    before: _Node | None


@dataclass(frozen=True, kw_only=True)
class Beam:
    """A text that goes on."""

    token: int
    """Its newest token: what the model sees next."""
    parent: int
    """Which of the beams before it continues: whose cache it needs."""


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A finished text."""

    score: float
    """The sum of its log-probabilities over its length to the power of the length penalty."""
    tokens: tuple[int, ...]
    """The end token is among them where there was one."""
    ended: bool
    """By an end token, and not for its length."""


class _Candidate(NamedTuple):
    score: np.float32
    beam: int
    token: int


@dataclass(kw_only=True)
class BeamSearch:
    """One request's search: it begins with one beam, the prompt."""

    params: SamplingParams
    ends: Collection[int]
    """The tokens that end a text."""
    max_tokens: int
    """As the request wants, or less where the engine has less room."""
    done: bool = False
    length: int = 0
    """Tokens that every beam has."""
    _running: list[tuple[np.float32, _Node | None]] = field(default_factory=lambda: [(np.float32(0), None)])
    _finished: list[tuple[np.float32, _Node, bool]] = field(default_factory=list)

    @property
    def num_candidates(self) -> int:
        """How many of the likeliest tokens of each beam a step needs: even if ends are, beams are left."""
        return max(2, 1 + len(self.ends)) * self.params.num_beams

    @property
    def num_running(self) -> int:
        """Rows that the next step needs."""
        return len(self._running)

    def step(self, scores: Sequence[Sequence[float]], tokens: Sequence[Sequence[int]]) -> list[Beam]:
        """What goes on after each running beam was extended by its likeliest tokens; none when it is done."""
        candidates = self._candidates(scores, tokens)
        self.length += 1
        most = self.params.num_beams
        # Only the best of all may finish: the others are there so that enough go on.
        self._finish([candidate for candidate in candidates[:most] if self._ends(candidate)])
        going_on = [candidate for candidate in candidates if not self._ends(candidate)][:most]
        self._running = [(c.score, _Node(c.token, self._running[c.beam][1])) for c in going_on]
        self.done = not going_on or self._is_settled()
        return [] if self.done else [Beam(token=c.token, parent=c.beam) for c in going_on]

    def _ends(self, candidate: _Candidate) -> bool:
        return self.length >= self.max_tokens or candidate.token in self.ends

    def _candidates(
        self, scores: Sequence[Sequence[float]], tokens: Sequence[Sequence[int]]
    ) -> list[_Candidate]:
        """The best continuations of all beams together, in order."""
        found = [
            _Candidate(np.float32(score) + self._running[beam][0], beam, token)
            for beam, row in enumerate(scores)
            for score, token in zip(row, tokens[beam], strict=True)
        ]
        return sorted(found, key=lambda candidate: -candidate.score)[: self.num_candidates]

    def _finish(self, enders: list[_Candidate]) -> None:
        """Keep the best so many of the finished texts, old and new."""
        new = [
            (self._ranked(c.score), _Node(c.token, self._running[c.beam][1]), c.token in self.ends)
            for c in enders
        ]
        merged = sorted([*self._finished, *new], key=lambda finished: -finished[0])
        self._finished = merged[: self.params.num_beams]

    def _is_settled(self) -> bool:
        """Whether no beam can be hoped to become better than the worst finished text.

        This looks at the best beam's score at its present length, as Transformers does; with a positive
        length penalty a longer text could still win.
        """
        if not self._is_full:
            return False
        return self.params.early_stopping or bool(self._ranked(self._running[0][0]) <= self._finished[-1][0])

    @property
    def _is_full(self) -> bool:
        return len(self._finished) == self.params.num_beams

    def _ranked(self, score: np.float32) -> np.float32:
        with np.errstate(over="ignore", divide="ignore", under="ignore"):
            return score / np.float32(np.float64(self.length) ** self.params.length_penalty)

    def hypotheses(self) -> list[Hypothesis]:
        """The best `n` finished texts, best first."""
        return [
            Hypothesis(score=float(score), tokens=tuple(_spelled(node))[::-1], ended=ended)
            for score, node, ended in self._finished[: self.params.n]
        ]


def _spelled(node: _Node | None) -> Iterator[int]:
    """The tokens from the last to the first."""
    while node is not None:
        yield node.token
        node = node.before
