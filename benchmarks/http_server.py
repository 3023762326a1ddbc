"""The servers that `http.py` measures: a bare stream, and the API over engines that have every token at once.

    python -m benchmarks.http_server bare|api|thread|guarded

Prints its port, its process and a key, which only the last one takes: it has keys with limits, and logs.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import uvicorn
import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send

from actors.engine_stats import EngineStats
from actors.messages import Request, Tokens, Usage
from cluster.access import Access
from cluster.api import create_app
from cluster.api_config import ApiConfig
from cluster.api_keys import made, write_keys
from cluster.local_app import served
from cluster.local_engine import LocalEngine
from cluster.request_log import log_requests_to
from cluster.served_model import ServedModel
from tests.actors.test_detokenizer import CORPUS, byte_level
from tests.cluster.fake_engine import FACTS, FakeEngine

EVENT = (
    b'data: {"id":"chatcmpl-428b61cae322a3e1de2ca16a96e66d1e","created":1795265674,"model":"fake",'
    b'"system_fingerprint":"fp_0123456789ab","object":"chat.completion.chunk","choices":[{"index":0,'
    b'"delta":{"content":" quick"},"logprobs":null,"finish_reason":null}]}\n\n'
)
"""As long as the API's."""


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    """The cheapest stream: an event a token, always the same, as many as the path says."""
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(int(scope["path"].rpartition("/")[2])):
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": EVENT, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


class InstantSource:
    """A generator whose steps take no time: every text gets a token."""

    limits, eos = FACTS.limits, FACTS.eos

    def __init__(self, tokens: Sequence[int], step_s: float = 0) -> None:
        """What a step takes is spent on a device that is not this processor."""
        self._next, self._step_s = cycle(tokens), step_s
        self._left: dict[str, int] = {}

    @property
    def has_work(self) -> bool:
        return bool(self._left)

    def add(self, request: Request) -> None:
        self._left[request.id] = request.params.max_tokens

    def cancel(self, request: str, index: int | None = None) -> None:
        self._left.pop(request, None)

    def step(self) -> list[Tokens]:
        time.sleep(self._step_s)  # lets other threads run, as every wait for a device does
        news = [self._token(request) for request in self._left]
        self._left = {request: left - 1 for request, left in self._left.items() if left > 1}
        return news

    def _token(self, request: str) -> Tokens:
        if self._left[request] > 1:
            return Tokens(request, 0, (next(self._next),))
        return Tokens(request, 0, (next(self._next),), "length", Usage(1, 1, 0))

    def stats(self) -> EngineStats:
        return EngineStats()

    def close(self) -> None: ...


def api(*, in_thread: bool, access: Access) -> ASGIApp:
    """With an engine in the event loop, or behind a thread as a real one is."""
    tokens = byte_level().encode(" ".join(CORPUS))
    config = ApiConfig()

    @asynccontextmanager
    async def opening() -> AsyncIterator[Sequence[ServedModel]]:
        engine = LocalEngine(InstantSource(tokens), FACTS) if in_thread else FakeEngine(tokens)
        model = served(engine, byte_level(), config, chat_template="{{ messages[0].content }}")
        yield [model]
        await model.close()

    return create_app(opening, config, access=access)


def guarded(folder: str) -> tuple[str, Access]:
    """A key that has never used up its limits, and what takes it."""
    most = 10**9
    key, record = made("bench", requests_per_minute=most, tokens_per_minute=most, max_concurrent=most)
    write_keys(path := Path(folder) / "keys.json", [record])
    log_requests_to(open(os.devnull, "w"))  # noqa: SIM115 - until the process ends
    return key, Access(keys_file=path)


async def main() -> None:
    """Serves until it is killed."""
    kind = sys.argv[1]
    with TemporaryDirectory() as folder:
        key, access = guarded(folder) if kind == "guarded" else ("none", Access())
        await serve(bare if kind == "bare" else api(in_thread=kind == "thread", access=access), key)


async def serve(app: ASGIApp, key: str) -> None:
    """And says where."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    (socket,) = server.servers[0].sockets
    print(socket.getsockname()[1], os.getpid(), key, flush=True)
    await serving


if __name__ == "__main__":
    uvloop.run(main())
