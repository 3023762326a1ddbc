"""What obeys plans: the ranks of a model, here one that is alone in this process."""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack
from typing import Protocol

from actors.messages import Order, StepResult
from actors.pending import Pending
from actors.rank_worker import RankSetup, RankWorker


class Ranks(Protocol):
    """Steps are submitted in order, several at a time; results come in the same order."""

    def submit(self, order: Order) -> None:
        """Have every rank compute a step."""

    def collect(self) -> StepResult:
        """The result of the oldest step that has none yet."""

    def check(self) -> None:
        """Raise what has gone wrong, if anything has."""

    def close(self) -> None:
        """End all ranks."""


class SoloRank:
    """A model of one rank, without Ray."""

    def __init__(self, setup: RankSetup, device: str | None = None) -> None:
        self._worker = RankWorker(setup, device=device)
        self._under_way: deque[Pending] = deque()
        self._opened = ExitStack()
        self._opened.callback(self._worker.close)

    def submit(self, order: Order) -> None:
        self._under_way.append(self._worker.begin(order))

    def collect(self) -> StepResult:
        result = self._worker.finish(self._under_way.popleft())
        assert result, "one that is alone answers"
        return result

    def check(self) -> None:
        """What goes wrong is raised by steps."""

    def close(self) -> None:
        """What is under way is done first: it reads the memory that is given back."""
        with self._opened:
            while self._under_way:
                self.collect()
