"""What goes between an ingress and the replicas of its models beside Serve: news one way, cancellations back.

An ingress has one port for all replicas; a replica has one line to each ingress. Messages are msgspec's, and
all that comes up in one turn of a replica's event loop is one of them. A socket's name begins with the port's
secret: what has another is from nobody of ours, and is not looked at.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal, Protocol, cast

import msgspec
import zmq
from msgspec import Struct
from zmq.utils.monitor import recv_monitor_message

from actors.engine_stats import EngineStats
from actors.messages import Tokens
from builders.errors import BusyError, RankforgeError, RequestError, UserError, WordsError, WorkerError

_BEAT_MS, _SILENT_MS = 2000, 10000
"""How often ZeroMQ asks whether the other end is there, and how long it waits for an answer."""


class Door(Struct, frozen=True, array_like=True):
    """Where an ingress takes news."""

    url: str
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

    def taken(self, sender: bytes) -> None: ...

    def push(self, news: Tokens) -> None: ...

    def end(self, ended: Ended) -> None: ...


class _Socket:
    """A socket in the event loop: all that has come is read at once, without a task."""

    def __init__(self, kind: int, on_parts: Callable[[Sequence[bytes]], None]) -> None:
        self._loop, self._on_parts = asyncio.get_running_loop(), on_parts
        self._context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(kind)
        for option, value in _OPTIONS.items():
            self.socket.setsockopt(option, value)
        self._fd = cast(int, self.socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._fd, self._drain)
        self._loop.call_soon(self._drain)  # the file says nothing before the socket has been asked

    def send(self, *parts: bytes) -> None:
        """To whoever is there: nothing waits, and what cannot be sent is lost."""
        with suppress(zmq.ZMQError):
            self.socket.send_multipart(parts, zmq.NOBLOCK)
        if (
            cast(int, self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN
        ):  # a send takes the sign that something has come
            self._loop.call_soon(self._drain)

    def close(self) -> None:
        if not self.socket.closed:
            self._loop.remove_reader(self._fd)
            self._context.destroy(linger=0)

    def _drain(self) -> None:
        while not self.socket.closed:
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            with suppress(msgspec.MsgspecError):  # from whoever found the port
                self._on_parts(parts)


_OPTIONS = {
    zmq.LINGER: 0,
    zmq.SNDHWM: 0,  # never more than callers asked for
    zmq.RCVHWM: 0,
    zmq.HEARTBEAT_IVL: _BEAT_MS,
    zmq.HEARTBEAT_TIMEOUT: _SILENT_MS,
    zmq.HEARTBEAT_TTL: _SILENT_MS,
}


class NewsPort:
    """An ingress's end."""

    def __init__(self, host: str) -> None:
        secret = secrets.token_bytes(16)
        self._wire = _Socket(zmq.ROUTER, self._take)
        self._wire.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        number = self._wire.socket.bind_to_random_port(f"tcp://{host}")
        self.door = Door(f"tcp://{host}:{number}", secret)
        self._receivers: dict[str, Receiver] = {}
        self._listeners: dict[str, Callable[[bytes, Report], None]] = {}

    def expect(self, request: str, receiver: Receiver) -> None:
        """Its news are for this one."""
        self._receivers[request] = receiver

    def listen(self, model: str, listener: Callable[[bytes, Report], None]) -> None:
        """To what the model's replicas say of themselves."""
        self._listeners[model] = listener

    def forget(self, request: str) -> None:
        """Whoever takes it from now on is told that nobody wants it."""
        self._receivers.pop(request, None)

    def drop(self, sender: bytes, request: str, index: int | None) -> None:
        """Tell the replica that has a request."""
        self._wire.send(sender, _ENCODER.encode(Dropped(request, index)))

    def close(self) -> None:
        self._wire.close()

    def _take(self, parts: Sequence[bytes]) -> None:
        sender, data = parts[0], parts[-1]
        if len(parts) != 2 or not sender.startswith(self.door.secret):
            return
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
        self._wire = _Socket(zmq.DEALER, self._take)
        self._wire.socket.setsockopt(zmq.IDENTITY, door.secret + secrets.token_bytes(8))
        self._monitor = self._wire.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._monitor_fd = cast(int, self._monitor.getsockopt(zmq.FD))
        self._loop.add_reader(self._monitor_fd, self._look)
        self._loop.call_soon(self._look)
        self._wire.socket.connect(door.url)
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
        if not self._monitor.closed:
            self._loop.remove_reader(self._monitor_fd)
            self._wire.socket.disable_monitor()
        self._wire.close()

    def _post(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._is_due = False
        posted = Posted(tuple(self._taken), tuple(self._news), tuple(self._ended), self._report)
        self._taken, self._news, self._ended, self._report = [], [], [], None
        if not self._wire.socket.closed:
            self._wire.send(_ENCODER.encode(posted))

    def _take(self, parts: Sequence[bytes]) -> None:
        self._on_dropped(_DROPPED.decode(parts[-1]))

    def _look(self) -> None:
        """The ingress has gone, or is cut off."""
        while not self._monitor.closed and cast(int, self._monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            if recv_monitor_message(self._monitor)["event"] == zmq.EVENT_DISCONNECTED:
                self._on_lost(self)
                return


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
