"""A request's connection: what is sent to it, and that it is still there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from starlette.types import Message, Receive, Send

from cluster.api_errors import ApiError

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
"""The last one is for a proxy that would collect parts."""


class Reader:
    """Who is sent an answer: `send`, and whether he goes on reading."""

    def __init__(self, send: Send, limit_s: float) -> None:
        self._send, self._limit_s = send, limit_s
        self._since: float | None = None
        """When what is being sent now began to wait."""

    async def __call__(self, message: Message) -> None:
        self._since = time.monotonic()
        await self._send(message)
        self._since = None

    async def stops(self) -> None:
        """Returns when something has waited for the limit, or a little longer."""
        while True:
            since = self._since
            left_s = self._limit_s if since is None else since + self._limit_s - time.monotonic()
            if left_s <= 0:
                return
            await asyncio.sleep(left_s if since else self._limit_s / 4)


async def while_connected(receive: Receive, reader: Reader, work: Coroutine[Any, Any, None]) -> bool:
    """Ends the work when its caller is gone, or reads no more: False. The request's body has been read."""
    doing = asyncio.ensure_future(work)
    leaving = (asyncio.ensure_future(_until_gone(receive)), asyncio.ensure_future(reader.stops()))
    try:
        await asyncio.wait((doing, *leaving), return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            doing.result()
        return doing.done()
    finally:
        await _end(doing, *leaving)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Future[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def send_json(send: Send, body: bytes) -> None:
    """A whole answer."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: ApiError) -> None:
    """From where no application is around that would answer errors."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(error.body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": error.body})


async def send_events(send: Send, events: AsyncIterator[bytes]) -> None:
    """What fails before there is a first event has an answer, and a status, of its own."""
    first = await anext(events)
    await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
    await send({"type": "http.response.body", "body": first, "more_body": True})
    async for event in events:
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
