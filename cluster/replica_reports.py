"""What a model's replicas say of themselves, and what their silence means."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

from msgspec.structs import replace
from ray.exceptions import RayActorError

from actors.endings import cause_of
from actors.engine_stats import EngineStats, continued
from cluster.wire import Report

_MISSED_S = 2.5
"""Two reports have not come: nobody is there, if no replica has sent one."""

_HEARD_S, _SILENT_S = 5.0, 15.0
"""Replicas that have said nothing for so long count no more, and are asked to; and are forgotten."""

_MOST_SILENT = 64
"""Replicas of which it is remembered what they had counted, each by itself."""


class Reports:
    """Of one model, for one event loop; a replica is known by where its reports come from."""

    def __init__(self, model: str) -> None:
        self._model, self._loop = model, asyncio.get_running_loop()
        self._last: dict[Hashable, tuple[float, Report]] = {}
        self._gone = EngineStats()
        """What replicas have counted that are not heard of any more."""
        self._silent: dict[Hashable, EngineStats] = {}
        """Of those that have been silent for long, and may be heard again; the longest silent first."""
        self.failed_last: str | None = None
        """What the last replica's engine failed of; nothing, while one works."""
        self._expected = 0
        self._quiet_since = self._loop.time()
        self._died: str | None = None
        """Of what the last replica died; nothing, while another says how it is."""

    def take(self, sender: Hashable, report: Report) -> None:
        self._silent.pop(sender, None)
        self._last[sender] = self._loop.time(), report
        self.failed_last = report.failure
        self._quiet_since, self._died = self._loop.time(), None

    @property
    def heard(self) -> dict[Hashable, Report]:
        """Of each replica, what it said last; one that is dead says nothing."""
        since = self._loop.time() - _HEARD_S
        return {sender: report for sender, (heard, report) in self._last.items() if heard > since}

    def expect(self, replicas: int, *, is_sound: bool) -> None:
        """So many are there, as far as Serve knows; none at all may be sound."""
        if not self._expected:
            self._quiet_since = self._loop.time()
        if not replicas and is_sound:
            self._died = None
        self._expected = replicas

    @property
    def absence(self) -> str | None:
        """Why requests wait though Serve says that there are replicas, or before it has noticed."""
        if self._died and not self.heard:
            return self._died
        if not self._expected or self._loop.time() - self._quiet_since < _MISSED_S:
            return None
        last = max(self._last.values(), key=lambda one: one[0], default=None)
        return f"{self._named(last and last[1])}: has not been heard of for {_MISSED_S} s"

    def bury(self, sender: Hashable, lost: RayActorError) -> None:
        """What a replica said last that died is not so any more."""
        _, report = self._last.pop(sender, (0.0, None))
        if report:
            self._gone = continued(self._gone, report.stats)
        if report or not self._died:  # each of its requests tells of it, the first with where it was
            self._died = f"{self._named(report)}: {cause_of(lost)}"

    def stats(self) -> EngineStats:
        """Of all replicas that there were."""
        self._forget_silent()
        reports = [report.stats for _, report in self._last.values()]
        found = self._gone
        for stats in (*self._silent.values(), *reports):
            found = continued(found, stats)
        return replace(
            found,
            cache_blocks=sum(stats.cache_blocks for stats in reports),
            cache_blocks_used=sum(stats.cache_blocks_used for stats in reports),
        )

    def _named(self, report: Report | None) -> str:
        return f"{self._model}: {(report and report.whereabouts) or 'its replica'}"

    def _forget_silent(self) -> None:
        now = self._loop.time()
        for sender, (heard, report) in [*self._last.items()]:
            if now - heard > _SILENT_S:
                del self._last[sender]
                self._silent[sender] = report.stats
        while len(self._silent) > _MOST_SILENT:
            self._gone = continued(self._gone, self._silent.pop(next(iter(self._silent))))
