"""What an engine counts of its own work, as it is told to others: it may be in another process."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from msgspec import Struct


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
