"""A generator in this process behind an event loop: a thread of its own steps it.

The thread and the loop share two queues. Orders go in under a condition, on which the thread waits when it
has nothing to do; they are at most the requests that may wait and one cancellation for each text. News come
out in batches: however many steps the loop has not looked at yet, they cost it one wake-up.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from actors.engine_stats import EngineStats
from actors.messages import Request, Tokens
from builders.errors import BusyError, RankforgeError, RequestError, UserError, WorkerError
from cluster.engine_client import EngineLoad, ModelFacts
from cluster.generation import TokenSource
from cluster.news_stream import NewsStream

MAX_WAITING = 256
_LOOK_S = 0.25
"""How often a generator that has nothing to do is asked whether it has: ranks may fail while they wait."""


class OwnedSource(TokenSource, Protocol):
    """A generator that its thread ends. A step may raise RequestError, and then another follows."""

    def stats(self) -> EngineStats:
        """What it has done so far, for any thread."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class _Cancel:
    request: str
    index: int | None


@dataclass(frozen=True)
class _Refusal:
    """A request that can never be done, or that cannot go on."""

    request: str
    error: UserError | RequestError


class LocalEngine:
    """An `EngineClient`; the event loop that is running when it is made is the one that uses it."""

    def __init__(self, source: OwnedSource, facts: ModelFacts, *, max_waiting: int = MAX_WAITING) -> None:
        self._source, self._facts, self._max_waiting = source, facts, max_waiting
        self._loop = asyncio.get_running_loop()
        self._streams: dict[str, NewsStream] = {}
        self._waiting = 0
        self._failure: str | None = None
        self._cause: BaseException | None = None
        self._orders: list[Request | _Cancel] = []
        self._closing = False
        self._changed = threading.Condition()
        self._news: deque[list[Tokens] | _Refusal] = deque()
        self._is_told = False
        self._thread = threading.Thread(target=self._run, name=f"engine {facts.name}", daemon=True)
        self._thread.start()

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    def submit(self, request: Request) -> NewsStream:
        if self._failure:
            raise self._failed()
        if self._waiting >= self._max_waiting:
            raise BusyError(f"{self._facts.name}: {self._waiting} requests wait already; try again later")
        assert request.id not in self._streams, "every request has a name of its own"
        stream = NewsStream(self._loop, request.params.n)
        self._streams[request.id] = stream
        self._waiting += 1
        self._order(request)
        return stream

    def cancel(self, request: str, index: int | None = None) -> None:
        if stream := self._streams.get(request):
            stream.cancel(index)
            self._order(_Cancel(request, index))
            self._forget_ended(request, stream)

    def load(self) -> EngineLoad:
        return EngineLoad(
            running=len(self._streams) - self._waiting,
            waiting=self._waiting,
            failure=self._failure,
        )

    def stats(self) -> EngineStats:
        return self._source.stats()

    async def close(self) -> None:
        """Returns when the generator is closed."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)
        self._end(None)

    def _order(self, order: Request | _Cancel) -> None:
        with self._changed:
            self._orders.append(order)
            self._changed.notify()

    # The thread's side.

    def _run(self) -> None:
        with _Outcome(self), _Closing(self._source):
            while self._take_orders():
                self._step()

    def _step(self) -> None:
        try:
            if news := self._source.step():
                self._tell(news)
        except RequestError as error:
            self._tell(_Refusal(error.request, error))

    def _take_orders(self) -> bool:
        """Waits where there is nothing to do; false when it is to end."""
        with self._changed:
            while not (self._orders or self._closing or self._source.has_work):
                self._changed.wait(_LOOK_S)
            orders, self._orders = self._orders, []
        for order in orders if not self._closing else ():
            self._obey(order)
        return not self._closing

    def _obey(self, order: Request | _Cancel) -> None:
        if isinstance(order, _Cancel):
            self._source.cancel(order.request, order.index)
            return
        try:
            self._source.add(order)
        except UserError as error:
            self._tell(_Refusal(order.id, error))

    def _tell(self, news: list[Tokens] | _Refusal) -> None:
        """The flag falls before the loop takes news: what comes after that wakes it again."""
        self._news.append(news)
        if not self._is_told:
            self._is_told = True
            self._loop.call_soon_threadsafe(self._hand_out)

    # The loop's side.

    def _hand_out(self) -> None:
        self._is_told = False
        while self._news:
            found = self._news.popleft()
            if isinstance(found, _Refusal):
                self._refuse(found)
                continue
            for news in found:
                self._pass_on(news)

    def _pass_on(self, news: Tokens) -> None:
        stream = self._streams.get(news.request)
        if stream is None:  # cancelled meanwhile
            return
        self._waiting -= not stream.has_begun
        stream.push(news)
        if news.finish:
            self._forget_ended(news.request, stream)

    def _refuse(self, refusal: _Refusal) -> None:
        if stream := self._streams.get(refusal.request):
            stream.fail(refusal.error)
            self._forget_ended(refusal.request, stream)

    def _forget_ended(self, request: str, stream: NewsStream) -> None:
        if stream.has_ended:
            del self._streams[request]
            self._waiting -= not stream.has_begun

    def _end(self, cause: BaseException | None) -> None:
        """The first end counts; news that came before it are given."""
        self._hand_out()
        if self._failure is None:
            self._failure, self._cause = f"{self._facts.name}: {_words(cause)}", cause
        for request, stream in [*self._streams.items()]:
            stream.fail(self._failed())
            self._forget_ended(request, stream)

    def _failed(self) -> WorkerError:
        """One for every reader: an error that several raise has the traces of all."""
        error = WorkerError(self._failure)
        error.__cause__ = self._cause
        return error


def _words(cause: BaseException | None) -> str:
    if cause is None:
        return "the engine was closed"
    what = str(cause) if isinstance(cause, RankforgeError) else f"{type(cause).__name__}: {cause}"
    return f"the engine failed: {what}"


@dataclass(frozen=True)
class _Closing:
    """The generator is closed by the thread that used it."""

    source: OwnedSource

    def __enter__(self) -> None: ...

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.source.close()


@dataclass(frozen=True)
class _Outcome:
    """Whatever ends the thread ends the streams, which pass it on."""

    engine: LocalEngine

    def __enter__(self) -> None: ...

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        engine = self.engine
        if not engine._loop.is_closed():
            engine._loop.call_soon_threadsafe(engine._end, error)
        return True
