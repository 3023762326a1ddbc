"""A model's replicas as an `EngineClient`: a call of Serve's for every request, its news beside it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol

from msgspec.structs import replace
from ray.exceptions import RayActorError, RayError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, RayServeException

from actors.engine_stats import EngineStats
from actors.messages import Request, Tokens, encode
from builders.errors import BusyError, RankforgeError, RequestError, WordsError, WorkerError
from cluster.engine_client import EngineLoad, ModelFacts
from cluster.frames import Line
from cluster.news_stream import NewsStream
from cluster.replica_reports import Reports
from cluster.told import Told
from cluster.wire import Door, Ended, NewsPort, error_of

_LATE_S = 10.0
"""How long news may be under way when the call that they belong to has ended."""


_LOG = logging.getLogger("ray.serve")
_MOST_DEATHS, _PAUSE_S = 3, 0.2
"""Replicas that may die with one request, and how long to wait before the next is asked."""

_FAILING_S = 60.0
"""How long Serve may go on choosing replicas whose engine has failed, though there are others."""


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
    told: Told
    """What its caller has, with which another replica goes on."""
    known_as: str
    """By the replica: each gets another name for it, so that late news of a dead one are none."""
    sendings: int = 0
    """How often it went to another replica."""
    deaths: int = 0
    """Replicas that died with it."""
    failure: WorkerError | None = None
    """Of the engine of the replica that has it; what died with its process is not told."""
    failing_since: float | None = None
    """When it came to a replica whose engine has failed, first."""
    call: Call | None = None
    sender: Line | None = None
    """The replica that has it."""

    def taken(self, sender: Line) -> None:
        self.sender = sender

    def push(self, news: Tokens) -> None:
        if self.sendings:
            news = replace(news, request=self.request)
        self.engine._running += not self.stream.has_begun
        self.told.take(news)
        self.stream.push(news)
        if news.finish:
            self.engine._forget_ended(self)

    def end(self, ended: Ended) -> None:
        """Another replica may do what an engine that fails does not; who is alone with a failure ends."""
        error = error_of(ended)
        if isinstance(error, WordsError) and self.stream.has_begun:  # its tokens cannot be made again
            error = WorkerError(str(error))
        if isinstance(error, WorkerError) and not isinstance(error, RequestError):
            self.failure = error
        else:
            self.fail(error)

    def fail(self, error: RankforgeError) -> None:
        self.stream.fail(error)
        self.engine._forget_ended(self)


class RemoteEngine:
    """Used from one event loop."""

    def __init__(self, facts: ModelFacts, attend: Attend, port: NewsPort, *, words: str = "") -> None:
        """Replicas with another tokenizer than `words` refuse what comes from here."""
        self._facts, self._attend, self._port = facts, attend, port
        self._door = replace(port.door, words=words)
        self._loop = asyncio.get_running_loop()
        self._visits: dict[str, _Visit] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._running = 0
        self._hopeless_for: str | None = None
        """Why no replica takes requests, as far as Serve says."""
        self.reports = Reports(facts.name)
        port.listen(facts.name, self.reports.take)

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    def submit(self, request: Request) -> NewsStream:
        if why := self._hopeless_for:
            raise WorkerError(why)
        assert request.id not in self._visits, "every request has a name of its own"
        told, stream = Told(request), NewsStream(self._loop, request.params.n)
        visit = _Visit(request.id, stream, self, told, request.id)
        self._visits[request.id] = visit
        self._send(visit, told.request)
        task = self._loop.create_task(self._outlast(visit))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return stream

    def _send(self, visit: _Visit, request: Request) -> None:
        self._port.expect(request.id, visit)
        visit.known_as, visit.sender, visit.failure = request.id, None, None
        visit.call = self._attend(encode(request), self._door)

    def cancel(self, request: str, index: int | None = None) -> None:
        visit = self._visits.get(request)
        if visit is None:
            return
        visit.stream.cancel(index)
        visit.told.cancel(index)
        if visit.sender:
            self._port.drop(visit.sender, visit.known_as, index)
        elif visit.stream.has_ended and visit.call:
            visit.call.cancel()
        self._forget_ended(visit)

    def load(self) -> EngineLoad:
        waiting = len(self._visits) - self._running
        reports = [*self.reports.heard.values()]
        said = next((said for one in reports if (said := one.recovering or one.failure)), None)
        why = said or self.reports.absence
        failure = self._hopeless_for or (why if reports and all(one.failure for one in reports) else None)
        return EngineLoad(running=self._running, waiting=waiting, failure=failure, recovering=why)

    def heard_of(self) -> int:
        """How many replicas say how they are."""
        return len(self.reports.heard)

    def stats(self) -> EngineStats:
        """Of all replicas that have had a request from here."""
        return self.reports.stats()

    def leave(self) -> None:
        """The model is taken away."""
        self._give_up(f"{self._facts.name}: is not served any more")

    def learn(self, hopeless: str | None) -> None:
        """Why no replica starts, as far as Serve says, where none runs; or that it is not so."""
        self._hopeless_for = None
        if hopeless:
            first = f"{self.reports.failed_last}; " if self.reports.failed_last else f"{self._facts.name}: "
            self._give_up(f"{first}{hopeless}")

    def _give_up(self, why: str) -> None:
        """No replica will take what none has taken yet."""
        self._hopeless_for = why
        for visit in [*self._visits.values()]:
            if visit.sender is None and visit.call:
                visit.call.cancel()
                visit.fail(WorkerError(why))

    async def close(self) -> None:
        for visit in [*self._visits.values()]:
            visit.fail(WorkerError(f"{self._facts.name}: the service ends"))
            if visit.call:
                visit.call.cancel()
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _outlast(self, visit: _Visit) -> None:
        """Serve's side of a request ends after its news, unless its replica dies: then another goes on."""
        try:
            while (lost := await self._loss(visit)) and self._goes_on(visit, lost):
                await asyncio.sleep(_PAUSE_S)
                if visit.stream.has_ended:
                    return
                visit.sendings += 1
                if request := visit.told.rest():
                    self._send(visit, replace(request, id=f"{visit.request}~{visit.sendings}"))
        except BackPressureError as error:
            visit.fail(BusyError(f"{self._facts.name}: {error.message}"))
        except TaskCancelledError:
            pass
        except (RayError, RayServeException) as error:
            visit.fail(WorkerError(f"{self._facts.name}: its replica failed: {first_line(error)}"))

    async def _loss(self, visit: _Visit) -> RayActorError | WorkerError | None:
        """Waits for the end of a call; what killed its replica or its engine, if that is what ended it."""
        assert visit.call is not None, "it has been sent"
        try:
            await _result(visit.call)
        except RayActorError as error:
            return error
        await self._late(visit)
        return visit.failure

    def _goes_on(self, visit: _Visit, lost: RayActorError | WorkerError) -> bool:
        self._port.forget(visit.known_as)
        if isinstance(lost, RayActorError):
            self.reports.bury(visit.sender, lost)
        if visit.stream.has_ended:
            return False
        if error := self._hopeless(visit, lost):
            visit.fail(error)
            return False
        what = "died" if isinstance(lost, RayActorError) else "failed"
        _LOG.warning("%s: a replica %s; another goes on with %s", self._facts.name, what, visit.request)
        return True

    def _hopeless(self, visit: _Visit, lost: RayActorError | WorkerError) -> WorkerError | None:
        """Serve starts another replica for one that died; where an engine fails, another would too."""
        if isinstance(lost, RayActorError):
            visit.deaths += 1
            is_too_much = visit.deaths > _MOST_DEATHS
            why = WorkerError(f"{self._facts.name}: its replicas die: {first_line(lost)}")
            return why if is_too_much else None
        now = self._loop.time()
        visit.failing_since = visit.failing_since or now
        return None if self._others(visit.sender) and now - visit.failing_since < _FAILING_S else lost

    def _others(self, but: Line | None) -> bool:
        """Whether another replica's engine works."""
        return any(not report.failure for sender, report in self.reports.heard.items() if sender != but)

    async def _late(self, visit: _Visit) -> None:
        deadline = self._loop.time() + _LATE_S
        while not (visit.stream.has_ended or visit.failure):
            if self._loop.time() > deadline:
                visit.fail(WorkerError(f"{self._facts.name}: news of a request were lost on their way"))
            await asyncio.sleep(0.05)

    def _forget_ended(self, visit: _Visit) -> None:
        if visit.stream.has_ended and self._visits.pop(visit.request, None) is not None:
            self._running -= visit.stream.has_begun
            self._port.forget(visit.known_as)


async def _result(call: Call) -> None:
    await call


def first_line(error: Exception) -> str:
    """What Ray and Serve say takes many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no more is known'}"
