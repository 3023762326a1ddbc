"""A model's replicas as an `EngineClient`: a call of Serve's for every request, its news beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol

from msgspec.structs import replace
from ray.exceptions import RayError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, RayServeException

from actors.engine_stats import EngineStats, continued
from actors.messages import Request, Tokens, encode
from builders.errors import BusyError, RankforgeError, WorkerError
from cluster.engine_client import EngineLoad, ModelFacts
from cluster.news_stream import NewsStream
from cluster.wire import Door, Ended, NewsPort, Report, error_of

_LATE_S = 10.0
"""How long news may be under way when the call that they belong to has ended."""


_SILENT_S = 15.0
"""Replicas that have said nothing for so long are gone, or nobody's of here."""


class Call(Protocol):
    """A call of a replica, as Serve gives it."""

    def __await__(self) -> Generator[Any, Any, Any]: ...

    def cancel(self) -> None: ...


class Attend(Protocol):
    """Calls one of the model's replicas, which Serve chooses."""

    def __call__(self, request: bytes, door: Door) -> Call: ...


@dataclass(eq=False)
class _Visit:
    """A request at a replica."""

    request: str
    stream: NewsStream
    engine: RemoteEngine
    sender: bytes | None = None
    """The replica that has it."""

    def taken(self, sender: bytes) -> None:
        self.sender = sender

    def push(self, news: Tokens) -> None:
        self.engine._running += not self.stream.has_begun
        self.stream.push(news)
        if news.finish:
            self.engine._forget_ended(self)

    def end(self, ended: Ended) -> None:
        self.fail(error_of(ended))

    def fail(self, error: RankforgeError) -> None:
        self.stream.fail(error)
        self.engine._forget_ended(self)


class RemoteEngine:
    """Used from one event loop."""

    def __init__(self, facts: ModelFacts, attend: Attend, port: NewsPort) -> None:
        self._facts, self._attend, self._port = facts, attend, port
        self._loop = asyncio.get_running_loop()
        self._visits: dict[str, _Visit] = {}
        self._calls: dict[str, tuple[Call, asyncio.Task[None]]] = {}
        self._running = 0
        self.failure: str | None = None
        """Why it takes no requests, as far as Serve says."""
        self._gone = EngineStats()
        """What replicas have counted that are not heard of any more."""
        self._reports: dict[bytes, tuple[float, Report]] = {}
        port.listen(facts.name, self._hear)

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    def submit(self, request: Request) -> NewsStream:
        if self.failure:
            raise WorkerError(f"{self._facts.name}: {self.failure}")
        assert request.id not in self._visits, "every request has a name of its own"
        visit = _Visit(request.id, NewsStream(self._loop, request.params.n), self)
        self._visits[request.id] = visit
        self._port.expect(request.id, visit)
        call = self._attend(encode(request), self._port.door)
        self._calls[request.id] = call, self._loop.create_task(self._outlast(visit, call))
        return visit.stream

    def cancel(self, request: str, index: int | None = None) -> None:
        visit = self._visits.get(request)
        if visit is None:
            return
        visit.stream.cancel(index)
        if visit.sender:
            self._port.drop(visit.sender, request, index)
        elif visit.stream.has_ended:
            self._calls[request][0].cancel()
        self._forget_ended(visit)

    def load(self) -> EngineLoad:
        waiting = len(self._visits) - self._running
        why = next((one.recovering for _, one in self._reports.values() if one.recovering), None)
        return EngineLoad(running=self._running, waiting=waiting, failure=self.failure, recovering=why)

    def stats(self) -> EngineStats:
        """Of all replicas that have had a request from here."""
        self._forget_silent()
        reports = [report.stats for _, report in self._reports.values()]
        found = self._gone
        for stats in reports:
            found = continued(found, stats)
        return replace(
            found,
            cache_blocks=sum(stats.cache_blocks for stats in reports),
            cache_blocks_used=sum(stats.cache_blocks_used for stats in reports),
        )

    def _hear(self, sender: bytes, report: Report) -> None:
        self._reports[sender] = self._loop.time(), report

    def _forget_silent(self) -> None:
        now = self._loop.time()
        for sender, (heard, report) in [*self._reports.items()]:
            if now - heard > _SILENT_S:
                del self._reports[sender]
                self._gone = continued(self._gone, report.stats)

    def leave(self) -> None:
        """The model is taken away: no replica will take what none has taken yet."""
        self.failure = "is not served any more"
        for visit in [*self._visits.values()]:
            if visit.sender is None:
                self._calls[visit.request][0].cancel()
                visit.fail(WorkerError(f"{self._facts.name}: {self.failure}"))

    async def close(self) -> None:
        for visit in [*self._visits.values()]:
            visit.fail(WorkerError(f"{self._facts.name}: the service ends"))
        calls = [*self._calls.values()]
        for call, task in calls:
            call.cancel()
            task.cancel()
        await asyncio.gather(*(task for _, task in calls), return_exceptions=True)

    async def _outlast(self, visit: _Visit, call: Call) -> None:
        """Serve's side of a request ends after its news, unless its replica dies."""
        try:
            await _result(call)
        except BackPressureError as error:
            visit.fail(BusyError(f"{self._facts.name}: {error.message}"))
        except (RayError, RayServeException) as error:
            if not isinstance(error, TaskCancelledError):
                visit.fail(WorkerError(f"{self._facts.name}: its replica failed: {_first_line(error)}"))
        else:
            await self._late(visit)
        finally:
            del self._calls[visit.request]

    async def _late(self, visit: _Visit) -> None:
        deadline = self._loop.time() + _LATE_S
        while not visit.stream.has_ended:
            if self._loop.time() > deadline:
                visit.fail(WorkerError(f"{self._facts.name}: news of a request were lost on their way"))
            await asyncio.sleep(0.05)

    def _forget_ended(self, visit: _Visit) -> None:
        if visit.stream.has_ended and self._visits.pop(visit.request, None) is not None:
            self._running -= visit.stream.has_begun
            self._port.forget(visit.request)


async def _result(call: Call) -> None:
    await call


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no more is known'}"
