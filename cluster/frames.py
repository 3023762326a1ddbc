"""Messages over TCP in an event loop, each behind its length; who connects says a secret first.

The loop reads and writes the connections itself: a message wakes nobody but the two ends.
"""

from __future__ import annotations

import asyncio
import hmac
import socket
from collections.abc import Callable
from typing import cast

_LENGTH_BYTES = 4
_QUIET_S, _SILENT_S = 2, 10
"""How often a machine that says nothing is asked whether it is there, and how long it may not answer."""


class Line(asyncio.Protocol):
    """One end of a connection. What is sent before there is one follows then; once lost, it stays lost."""

    def __init__(
        self,
        on_message: Callable[[Line, bytearray], None],
        on_lost: Callable[[Line], None],
        *,
        secret: bytes = b"",
    ) -> None:
        """Where there is a `secret`, nothing is read of who has not said it."""
        self._on_message, self._on_lost, self._secret = on_message, on_lost, secret
        self._transport: asyncio.Transport | None = None
        self._early, self._came = bytearray(), bytearray()
        self._is_over = False
        self._connecting: asyncio.Task[None] | None = None

    def send(self, message: bytes) -> None:
        """Waits for nothing; what cannot be sent is lost."""
        self.write(len(message).to_bytes(_LENGTH_BYTES) + message)

    def write(self, data: bytes) -> None:
        """As it is."""
        if self._is_over:
            return
        if self._transport:
            self._transport.write(data)
        else:
            self._early += data

    def connect(self, host: str, port: int) -> None:
        """To a listener; in its own time."""
        self._connecting = asyncio.get_running_loop().create_task(self._connect(host, port))

    async def _connect(self, host: str, port: int) -> None:
        try:
            async with asyncio.timeout(_SILENT_S):
                await asyncio.get_running_loop().create_connection(lambda: self, host, port)
        except OSError:  # TimeoutError too
            self.connection_lost(None)

    def close(self) -> None:
        """Nothing is heard of it any more; what has been sent may be lost."""
        self._is_over = True
        if self._transport:
            self._transport.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        _keep_alive(transport.get_extra_info("socket"))
        if self._is_over:
            self._transport.abort()
        elif self._early:
            self._transport.write(bytes(self._early))

    def connection_lost(self, exc: Exception | None) -> None:
        """The other end is gone, or was not there."""
        if not self._is_over:
            self._is_over = True
            self._on_lost(self)

    def data_received(self, data: bytes) -> None:
        self._came += data
        if self._secret and not self._is_admitted():
            return
        start = 0
        while (begin := start + _LENGTH_BYTES) <= len(self._came):
            end = begin + int.from_bytes(self._came[start:begin])
            if end > len(self._came):
                break
            self._on_message(self, self._came[begin:end])
            start = end
        del self._came[:start]

    def _is_admitted(self) -> bool:
        size = len(self._secret)
        if len(self._came) < size:
            return False
        if not hmac.compare_digest(self._came[:size], self._secret):
            cast(asyncio.Transport, self._transport).abort()
            return False
        del self._came[:size]
        self._secret = b""
        return True


def _keep_alive(connection: socket.socket) -> None:
    """The end of a machine that is gone or cut off is noticed, also where nothing is sent."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEP_ALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


_KEEP_ALIVE = {
    getattr(socket, name): value
    for name, value in {
        "TCP_KEEPIDLE": _QUIET_S,
        "TCP_KEEPINTVL": _QUIET_S,
        "TCP_KEEPCNT": _SILENT_S // _QUIET_S,
        "TCP_USER_TIMEOUT": _SILENT_S * 1000,
    }.items()
    if hasattr(socket, name)  # not every system has all
}


class Listener:
    """Lines of all who connect and know the secret."""

    def __init__(self, server: asyncio.Server, lines: set[Line]) -> None:
        self._server, self._lines = server, lines

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        self._server.close()
        for line in self._lines:
            line.close()


async def listen(host: str, secret: bytes, on_message: Callable[[Line, bytearray], None]) -> Listener:
    """At a port that is free."""
    lines = set[Line]()

    def line() -> Line:
        lines.add(new := Line(on_message, lines.discard, secret=secret))
        return new

    return Listener(await asyncio.get_running_loop().create_server(line, host, 0), lines)
