"""What an engine counts of its own work, as it is told to others: it may be in another process."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace


class Distribution(Struct, frozen=True, array_like=True):
    """How often what was seen, by size."""

    bounds: tuple[float, ...]
    """Rising; what is equal to one belongs to it."""
    counts: tuple[int, ...]
    """Between them: one more than bounds, the last for what is above all."""
    total: float
    """Of all that was seen."""


class EngineStats(Struct, frozen=True, array_like=True):
    """From the engine's start on, unless it says otherwise."""

    cache_blocks: int = 0
    """That there are."""
    cache_blocks_used: int = 0
    """That sequences hold now."""
    prefix_queries: int = 0
    """Tokens of prompts that were looked up in the cache."""
    prefix_hits: int = 0
    """Those that were found."""
    preemptions: int = 0
    """Times that a sequence gave up its blocks for an older one."""
    recoveries: int = 0
    """Times that ranks were started again after one failed."""
    step_seconds: Distribution | None = None
    """From result to result."""
    step_tokens: Distribution | None = None
    """That steps computed."""
    queue_seconds: Distribution | None = None
    """That requests waited for a slot and blocks."""
    recovery_seconds: float = 0.0
    """That passed from failures to ranks that were ready again."""


def continued(before: EngineStats, now: EngineStats) -> EngineStats:
    """Of ranks that took the places of others: the cache is theirs, what was counted is of both."""
    return replace(
        now,
        prefix_queries=before.prefix_queries + now.prefix_queries,
        prefix_hits=before.prefix_hits + now.prefix_hits,
        preemptions=before.preemptions + now.preemptions,
        recoveries=before.recoveries + now.recoveries,
        recovery_seconds=before.recovery_seconds + now.recovery_seconds,
        step_seconds=_joined(before.step_seconds, now.step_seconds),
        step_tokens=_joined(before.step_tokens, now.step_tokens),
        queue_seconds=_joined(before.queue_seconds, now.queue_seconds),
    )


def _joined(before: Distribution | None, now: Distribution | None) -> Distribution | None:
    if before is None or now is None:
        return before or now
    assert before.bounds == now.bounds, "both are of one kind"
    counts = tuple(a + b for a, b in zip(before.counts, now.counts, strict=True))
    return Distribution(now.bounds, counts, before.total + now.total)


class Buckets:
    """A distribution in the making. One thread adds; others may look, and see it as it was or is."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._total += value * times

    @property
    def seen(self) -> Distribution:
        return Distribution(self._bounds, tuple(self._counts), self._total)
