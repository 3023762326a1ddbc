"""The news of one request on their way to its reader, both in one event loop."""

from __future__ import annotations

from asyncio import AbstractEventLoop, Future
from collections.abc import Callable

from actors.messages import Tokens
from cluster.engine_client import Batch


class NewsStream:
    """Holds what its reader has not taken: never more than the request asked for."""

    def __init__(self, loop: AbstractEventLoop, texts: int) -> None:
        self._loop = loop
        self._open = set(range(texts))
        self._news: list[Tokens] = []
        self._error: Exception | None = None
        self._reader: Future[None] | None = None
        self._passed_to: Callable[[Batch], None] | None = None
        self.has_begun = False
        """A token has come."""

    def __aiter__(self) -> NewsStream:
        return self

    async def __anext__(self) -> Batch:
        while not self._news:
            if self._error:
                raise self._error
            if not self._open:
                raise StopAsyncIteration
            self._reader = self._loop.create_future()
            await self._reader
        taken, self._news = self._news, []
        return taken

    async def passed_to(self, take: Callable[[Batch], None]) -> None:
        """All news at once to one that never waits: its reader wakes up when there are no more."""
        self._passed_to = take
        if self._news:
            taken, self._news = self._news, []
            take(taken)
        while not self.has_ended:
            self._reader = self._loop.create_future()
            await self._reader
        if self._error:
            raise self._error

    @property
    def has_ended(self) -> bool:
        """Nothing more will come."""
        return not self._open or self._error is not None

    def push(self, news: Tokens) -> None:
        """News of a text; of one that was cancelled they come too late."""
        if news.index not in self._open or self._error:
            return
        self.has_begun = True
        if news.finish:
            self._open.discard(news.index)
        if self._passed_to:
            self._passed_to((news,))
        else:
            self._news.append(news)
        if self.has_ended or not self._passed_to:
            self._wake()

    def cancel(self, index: int | None) -> None:
        """Expect no more of a text, or of any."""
        self._open -= set(self._open) if index is None else {index}
        self._wake()

    def fail(self, error: Exception) -> None:
        """What has come is read first."""
        if not self.has_ended:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if self._reader and not self._reader.done():
            self._reader.set_result(None)
