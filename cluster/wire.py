"""What goes between an ingress and the replicas of its models beside Serve: news one way, cancellations back.

An ingress has one port for all replicas; a replica has one line to each ingress. Messages are msgspec's, and
all that comes up in one turn of a replica's event loop is one of them. Both ends are in their process's event
loop, so a token wakes no thread on its way but the two that need it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import msgspec
from msgspec import Struct

from actors.engine_stats import EngineStats
from actors.messages import Tokens
from builders.errors import BusyError, RankforgeError, RequestError, UserError, WordsError, WorkerError
from cluster.frames import Line, listen


class Door(Struct, frozen=True, array_like=True):
    """Where an ingress takes news."""

    host: str
    port: int
    secret: bytes
    words: str = ""
    """Which tokenizer made the tokens that come from there, where it says so."""


class Ended(Struct, frozen=True, array_like=True):
    """A request that has no news any more, for it failed or was refused."""

    request: str
    kind: Literal["user", "words", "busy", "failed", "request"]
    """Which error it was."""
    message: str


class Report(Struct, frozen=True, array_like=True):
    """How a model's replica is, every so often."""

    model: str
    stats: EngineStats
    recovering: str | None = None
    """Why its ranks are being started anew."""
    failure: str | None = None
    """Why it takes no requests."""
    whereabouts: str = ""
    """Of its process, as a cause of failure names it."""


class Posted(Struct, frozen=True, array_like=True):
    """All that is new at a replica for one ingress; its parts apply in this order."""

    taken: tuple[str, ...] = ()
    """Requests that it has from now on."""
    news: tuple[Tokens, ...] = ()
    ended: tuple[Ended, ...] = ()
    report: Report | None = None


class Dropped(Struct, frozen=True, array_like=True):
    """Of a request, nobody wants a text any more, or all of it."""

    request: str
    index: int | None = None


_ENCODER = msgspec.msgpack.Encoder()
_POSTED, _DROPPED = msgspec.msgpack.Decoder(Posted), msgspec.msgpack.Decoder(Dropped)


class Receiver(Protocol):
    """Whoever waits for a request's news."""

    def taken(self, sender: Line) -> None: ...

    def push(self, news: Tokens) -> None: ...

    def end(self, ended: Ended) -> None: ...


class NewsPort:
    """An ingress's end. A replica is known by its line."""

    def __init__(self) -> None:
        self._receivers: dict[str, Receiver] = {}
        self._listeners: dict[str, Callable[[Line, Report], None]] = {}

    async def open(self, host: str) -> NewsPort:
        """From now on replicas can connect."""
        secret = secrets.token_bytes(16)
        self._lines = await listen(host, secret, self._take)
        self.door = Door(host, self._lines.port, secret)
        return self

    def expect(self, request: str, receiver: Receiver) -> None:
        """Its news are for this one."""
        self._receivers[request] = receiver

    def listen(self, model: str, listener: Callable[[Line, Report], None]) -> None:
        """To what the model's replicas say of themselves."""
        self._listeners[model] = listener

    def forget(self, request: str) -> None:
        """Whoever takes it from now on is told that nobody wants it."""
        self._receivers.pop(request, None)

    def drop(self, sender: Line, request: str, index: int | None) -> None:
        """Tell the replica that has a request."""
        sender.send(_ENCODER.encode(Dropped(request, index)))

    def close(self) -> None:
        self._lines.close()

    def _take(self, sender: Line, data: bytearray) -> None:
        posted, receivers = _POSTED.decode(data), self._receivers
        for request in posted.taken:
            if receiver := receivers.get(request):
                receiver.taken(sender)
            else:
                self.drop(sender, request, None)
        for news in posted.news:
            if receiver := receivers.get(news.request):
                receiver.push(news)
        for ended in posted.ended:
            if receiver := receivers.get(ended.request):
                receiver.end(ended)
        if (report := posted.report) and (listener := self._listeners.get(report.model)):
            listener(sender, report)


class NewsLine:
    """A replica's end, to one ingress; what is posted goes when the event loop comes round."""

    def __init__(
        self, door: Door, on_dropped: Callable[[Dropped], None], on_lost: Callable[[NewsLine], None]
    ) -> None:
        self._loop, self._on_dropped, self._on_lost = asyncio.get_running_loop(), on_dropped, on_lost
        self.door, self.requests = door, set[str]()
        self._wire = Line(self._take, self._gone)
        self._wire.write(door.secret)
        self._wire.connect(door.host, door.port)
        self._taken: list[str] = []
        self._news: list[Tokens] = []
        self._ended: list[Ended] = []
        self._report: Report | None = None
        self._is_due = False

    def taken(self, request: str) -> None:
        """The replica has it."""
        self._taken.append(request)
        self._post()

    def news(self, batch: Sequence[Tokens]) -> None:
        self._news += batch
        self._post()

    def failed(self, request: str, error: RankforgeError) -> None:
        """It has no news any more."""
        self._ended.append(ended_by(request, error))
        self._post()

    def report(self, report: Report) -> None:
        self._report = report
        self._post()

    def close(self) -> None:
        self._wire.close()

    def _post(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._is_due = False
        posted = Posted(tuple(self._taken), tuple(self._news), tuple(self._ended), self._report)
        self._taken, self._news, self._ended, self._report = [], [], [], None
        self._wire.send(_ENCODER.encode(posted))

    def _take(self, _line: Line, data: bytearray) -> None:
        self._on_dropped(_DROPPED.decode(data))

    def _gone(self, _line: Line) -> None:
        """The ingress, or the way to it."""
        self._on_lost(self)


def ended_by(request: str, error: RankforgeError) -> Ended:
    """As it travels."""
    kinds: dict[type[RankforgeError], Literal["user", "words", "busy", "request"]] = {
        UserError: "user",
        WordsError: "words",
        BusyError: "busy",
        RequestError: "request",
    }
    found = (name for kind, name in kinds.items() if isinstance(error, kind))
    return Ended(request, next(found, "failed"), str(error))


def error_of(ended: Ended) -> RankforgeError:
    """As it was raised."""
    if ended.kind == "request":
        return RequestError(ended.request, ended.message)
    kinds = {"user": UserError, "words": WordsError, "busy": BusyError, "failed": WorkerError}
    return kinds[ended.kind](ended.message)
