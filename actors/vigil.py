"""Watching over a group: the first rank that dies, falls silent, raises or never ends is named."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import ray

from actors.endings import cause_of, ending
from actors.rank_host import Whereabouts
from actors.wires import Head
from builders.errors import PeerError, WorkerError

_LOOK_S = 0.05
"""How often the group is looked at; what a failure takes to be noticed beside its own bound."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How long things may take; no wait is longer than one of these."""

    start_s: float = 600.0
    """To place, start and load all ranks."""
    silent_s: float = 10.0
    """A rank shows no sign of life."""
    wait_s: float = 60.0
    """A rank waits for others within a step; not less than what one stage needs for the longest step."""
    step_s: float = 120.0
    """A step is not answered, though every rank is alive."""

    @property
    def beat_s(self) -> float:
        """How often a rank shows that it is alive."""
        return min(1.0, self.silent_s / 8)


class Vigil:
    """A thread that looks at the ranks of a group until the first failure, which stays.

    A rank that waits in vain for another is a consequence: its error counts when no cause is found in time.
    """

    def __init__(
        self,
        head: Head,
        ranks: Mapping[int, Whereabouts],
        serving: Mapping[int, Any],
        bounds: Bounds,
        on_failure: Callable[[], None],
    ) -> None:
        now = time.monotonic()
        self._head, self._ranks, self._serving, self._bounds = head, ranks, dict(serving), bounds
        self._on_failure = on_failure
        self._heard, self._done = dict.fromkeys(ranks, now), dict.fromkeys(ranks, 0)
        self._ready: set[int] = set()
        self._steps: dict[int, float] = {}
        self._suspicion: tuple[float, str] | None = None
        self._failure: str | None = None
        self._error: BaseException | None = None
        self._over = False
        self._thread = threading.Thread(target=self._run, name="vigil", daemon=True)
        self._thread.start()

    @property
    def all_ready(self) -> bool:
        """Whether all ranks have loaded."""
        return len(self._ready) == len(self._ranks)

    def check(self) -> None:
        """Raise what has gone wrong: from what a rank raised, if that was it."""
        if self._failure is not None:
            raise WorkerError(self._failure) from self._error

    def began(self, step: int) -> None:
        """An answer is expected from now on."""
        self._steps[step] = time.monotonic()

    def ended(self, step: int) -> None:
        """It is there."""
        self._steps.pop(step, None)

    def explain(self, error: PeerError) -> NoReturn:
        """This process has waited in vain: raise the cause, once it is clear."""
        self._suspicion = self._suspicion or (time.monotonic(), str(error))
        while self._failure is None and not self._over:
            time.sleep(_LOOK_S)
        raise WorkerError(self._failure or str(error)) from (self._error or error)

    def close(self) -> None:
        """Look no longer."""
        self._over = True
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._over and self._failure is None:
                self._hear()
                self._failure = self._dead() or self._silent() or self._waiting() or self._endless()
        finally:  # waits rely on this thread: it does not end without a word
            if self._failure is None and not self._over:
                self._failure = "the ranks are watched no longer: looking at them has failed"
            if self._failure is not None:
                self._on_failure()

    def _hear(self) -> None:
        for beat in self._head.beats(_LOOK_S):
            self._heard[beat.rank] = time.monotonic()
            self._done[beat.rank] = beat.done
            if beat.ready:
                self._ready.add(beat.rank)

    def _dead(self) -> str | None:
        """Actors that no longer serve; a rank that only waited for another becomes a suspicion."""
        ended, _ = ray.wait(list(self._serving.values()), timeout=0) if self._serving else ([], [])
        for rank in [rank for rank, serving in self._serving.items() if serving in ended]:
            error = ending(self._serving.pop(rank))
            if not isinstance(error, PeerError):
                self._error = error
                return f"{self._named(rank)}: {cause_of(error)}"
            self._suspicion = self._suspicion or (time.monotonic(), str(error))
        return None

    def _silent(self) -> str | None:
        now = time.monotonic()
        for rank in self._serving:
            silence = now - self._heard[rank]
            if silence > self._bounds.silent_s:
                return f"{self._named(rank)}: no sign of life for {silence:.1f} s: it is stopped, or cut off"
        return None

    def _waiting(self) -> str | None:
        """A wait in vain, unless its cause is still to be heard of."""
        if self._suspicion is None:
            return None
        since, error = self._suspicion
        return error if time.monotonic() - since > self._bounds.silent_s + 2 * _LOOK_S else None

    def _endless(self) -> str | None:
        step, since = next(iter(self._steps.copy().items()), (0, time.monotonic()))
        if time.monotonic() - since <= self._bounds.step_s:
            return None
        behind = [self._named(rank) for rank, done in self._done.items() if done <= step]
        return f"step {step} is not done after {self._bounds.step_s:g} s; not through it: {', '.join(behind)}"

    def _named(self, rank: int) -> str:
        return named(rank, self._ranks[rank])


def named(rank: int, where: Whereabouts) -> str:
    """As failures call it."""
    return f"rank {rank} on node {where.host} (pid {where.pid})"
