"""The sockets between a group's head and its ranks: ZeroMQ, local inside a node and TCP between nodes."""

from __future__ import annotations

import secrets
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import msgspec
import zmq

from actors.messages import Beat, decode, encode
from builders.errors import PeerError

POLL_S = 0.05
"""How long the head listens before it looks at other things."""

_SEND_TIMEOUT_S = 5.0
"""How long a rank may leave its orders lying before that is a failure."""


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    """Where a rank finds the head."""

    orders: str
    beats: str
    secret: bytes


class Head:
    """The end that orders. One thread may use `send` and `receive`, and one may use `beats`."""

    def __init__(self, host: str) -> None:
        self._secret, self._context = secrets.token_bytes(16), zmq.Context()
        self._folder = tempfile.TemporaryDirectory(prefix="rankforge-")  # nobody else may enter it
        self._orders, self._beats = (self._context.socket(kind) for kind in (zmq.ROUTER, zmq.PULL))
        self._orders.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._orders.setsockopt(zmq.SNDTIMEO, int(1000 * _SEND_TIMEOUT_S))
        self._orders.setsockopt(zmq.RCVTIMEO, int(1000 * POLL_S))
        self._near, self._far = {}, {}
        for name, socket in (("orders", self._orders), ("beats", self._beats)):
            socket.setsockopt(zmq.LINGER, 0)
            self._near[name] = f"ipc://{Path(self._folder.name) / name}"
            socket.bind(self._near[name])
            self._far[name] = f"tcp://{host}:{socket.bind_to_random_port(f'tcp://{host}')}"

    def endpoints(self, *, same_node: bool) -> Endpoints:
        """For a rank to connect to."""
        return Endpoints(**(self._near if same_node else self._far), secret=self._secret)

    def send(self, rank: int, data: bytes) -> None:
        """An order to one rank, which has to be connected."""
        try:
            self._orders.send_multipart((_identity(self._secret, rank), data))
        except zmq.ZMQError as error:
            raise PeerError(f"rank {rank}: does not take its orders ({error})") from error

    def receive(self) -> bytes | None:
        """The next answer; None if there is none for `POLL_S`, or what comes is not from a rank."""
        try:
            sender, *rest = self._orders.recv_multipart()
        except zmq.Again:
            return None
        return rest[0] if len(rest) == 1 and sender.startswith(b"r" + self._secret) else None

    def beats(self, timeout_s: float) -> list[Beat]:
        """Signs of life that have come; waits for the first."""
        found = []
        wait_ms = int(1000 * timeout_s)
        while self._beats.poll(wait_ms):
            wait_ms = 0
            with suppress(msgspec.MsgspecError):  # from whoever found the port
                beat = decode(Beat, self._beats.recv())
                if beat.secret == self._secret:
                    found.append(beat)
        return found

    def close(self) -> None:
        """No thread uses it any more."""
        self._context.destroy(linger=0)
        self._folder.cleanup()


class Tail:
    """A rank's end of the orders."""

    def __init__(self, endpoints: Endpoints, rank: int) -> None:
        self._context = zmq.Context()
        self._orders = self._context.socket(zmq.DEALER)
        self._orders.setsockopt(zmq.IDENTITY, _identity(endpoints.secret, rank))
        self._orders.connect(endpoints.orders)

    def receive(self, *, wait: bool) -> bytes | None:
        """The next order, or None. The wait has no bound: Ray ends a rank whose head is gone."""
        try:
            return self._orders.recv(0 if wait else zmq.NOBLOCK)
        except zmq.Again:
            return None

    def send(self, data: bytes) -> None:
        """An answer."""
        self._orders.send(data)

    def close(self) -> None:
        self._context.destroy(linger=0)


class Pulse:
    """Says every so often, from a thread of its own, that a rank is alive and how far it is."""

    def __init__(self, endpoints: Endpoints, rank: int, interval_s: float) -> None:
        self.ready, self.done = False, 0
        self._endpoints, self._rank, self._interval_s = endpoints, rank, interval_s
        self._news = threading.Event()
        self._over = False
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._over = True
        self._news.set()
        self._thread.join()

    def is_ready(self) -> None:
        """Say at once that orders are taken."""
        self.ready = True
        self._news.set()

    def _run(self) -> None:
        with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(self._endpoints.beats)
            self._beat(socket.send)

    def _beat(self, send: Callable[[bytes], object]) -> None:
        while not self._over:
            send(encode(self._now()))
            self._news.wait(self._interval_s)
            self._news.clear()

    def _now(self) -> Beat:
        return Beat(secret=self._endpoints.secret, rank=self._rank, ready=self.ready, done=self.done)


def _identity(secret: bytes, rank: int) -> bytes:
    return b"r" + secret + rank.to_bytes(4, "little")
