"""Around all else: a request's name, its log line, and its place in the counts."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Awaitable
from dataclasses import dataclass
from types import TracebackType

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.request_counts import Counts
from cluster.request_log import log_request
from cluster.request_record import RequestRecord, begin_record


class Watch:
    """ASGI middleware: one more call for each message of an answer, and nothing awaited."""

    def __init__(self, app: ASGIApp, counts: Counts, *, is_logged: bool) -> None:
        self._app, self._counts, self._is_logged = app, counts, is_logged

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = begin_record(scope)

        def named(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", record.id.encode())]
                return send({**message, "headers": headers})
            return send(message)

        with _Outcome(record, self._counts, self._is_logged):
            await self._app(scope, receive, named)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Whatever ends a request is noted, and goes on as it came."""

    record: RequestRecord
    counts: Counts
    is_logged: bool

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        record = self.record
        if isinstance(error, CancelledError | ClientDisconnect):
            record.has_left = True
        elif error is not None:
            record.error = record.error or type(error).__name__
        if record.status is None:
            record.status = 499 if error is None or record.has_left else 500
        self.counts.end(record)
        if self.is_logged:
            log_request(record)
