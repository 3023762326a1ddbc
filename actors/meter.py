"""Counts what a generator's steps take and what they hold; a few microseconds a step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from actors.engine_stats import Buckets, EngineStats
from actors.messages import StepPlan
from actors.scheduler import Scheduler

STEP_S = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5, 10)
STEP_TOKENS = tuple(2**power for power in range(16))
QUEUE_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


@dataclass(slots=True)
class Meter:
    """The generator's thread uses it; `stats` may be asked for by another."""

    clock: Callable[[], float] = time.perf_counter
    _step_s: Buckets = field(default_factory=lambda: Buckets(STEP_S))
    _step_tokens: Buckets = field(default_factory=lambda: Buckets(STEP_TOKENS))
    _queue_s: Buckets = field(default_factory=lambda: Buckets(QUEUE_S))
    _arrived_s: dict[str, float] = field(default_factory=dict)
    """By request, of those that have not been admitted."""
    _since_s: float | None = None
    """When the step that is waited for began, or the one before it ended."""

    def arrive(self, request: str) -> None:
        """It begins to wait."""
        self._arrived_s[request] = self.clock()

    def leave(self, request: str) -> None:
        """It waits no more, and has got nothing."""
        self._arrived_s.pop(request, None)

    def begin(self, plan: StepPlan) -> None:
        """Ranks are told. Who was admitted before and sent back has been counted."""
        if self._since_s is None:
            self._since_s = self.clock()
        for one in plan.admitted:
            if (arrived_s := self._arrived_s.pop(one.request, None)) is not None:
                self._queue_s.add(self.clock() - arrived_s)

    def end(self, plan: StepPlan, *, is_last: bool) -> None:
        """Its result is there; after the last, nobody has work, and what follows is no step's time."""
        assert self._since_s is not None, "a step that ends has begun"
        now = self.clock()
        self._step_s.add(now - self._since_s)
        self._step_tokens.add(_num_tokens(plan))
        self._since_s = None if is_last else now
        if is_last:
            self._arrived_s.clear()

    def stats(self, scheduler: Scheduler) -> EngineStats:
        """So far."""
        tally = scheduler.tally
        return EngineStats(
            cache_blocks=scheduler.num_blocks,
            cache_blocks_used=scheduler.num_blocks_used,
            prefix_queries=tally.prefix_queries,
            prefix_hits=tally.prefix_hits,
            preemptions=tally.preemptions,
            step_seconds=self._step_s.seen,
            step_tokens=self._step_tokens.seen,
            queue_seconds=self._queue_s.seen,
        )


def _num_tokens(plan: StepPlan) -> int:
    """As `StepPlan.num_tokens`, without a list of the slots."""
    decoding = int.from_bytes(plan.decode, "little").bit_count()
    return decoding + sum(len(run.tokens) for run in plan.runs) + sum(chunk.count for chunk in plan.chunks)
