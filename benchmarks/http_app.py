"""What the API itself takes of a request and of a streamed token, without sockets or a server around it.

    python -m benchmarks.http_app

Processor time of this process, the least of several rounds, with an engine that has every token at once. A
request is one with a single token; a token is what each further one adds. Lines differ in what is around the
routes: nothing but counting; a line of the log for every request, to /dev/null; a key with all its limits.
"""

from __future__ import annotations

import asyncio
import json
import time
from tempfile import TemporaryDirectory

import uvloop
from starlette.types import ASGIApp, Message

from benchmarks.http_server import api, guarded
from cluster.access import Access
from cluster.request_log import LOG

_TOKENS, _ROUNDS = 400, 20


async def main() -> None:
    """A line for each."""
    print(f"{'around the routes':<24}{'us a request':>14}{'us a token':>12}")
    with TemporaryDirectory() as folder:
        await measure("counts", Access(log_requests=False), "none")
        key, closed = guarded(folder)  # from here on there is a log
        await measure("counts, log", Access(), key)
        await measure("counts, log, keys", closed, key)
    LOG.handlers.clear()


async def measure(name: str, access: Access, key: str) -> None:
    app = api(in_thread=False, access=access)
    news: asyncio.Queue[Message] = asyncio.Queue()
    started = asyncio.Event()
    await news.put({"type": "lifespan.startup"})

    async def hear(_message: Message) -> None:
        started.set()

    serving = asyncio.ensure_future(app({"type": "lifespan", "state": {}}, news.get, hear))
    await started.wait()
    short, long = await least_s(app, key, 1, 200), await least_s(app, key, 1 + _TOKENS, 10)
    print(f"{name:<24}{short * 1e6:>14.0f}{(long - short) / _TOKENS * 1e6:>12.2f}", flush=True)
    await news.put({"type": "lifespan.shutdown"})
    await serving


async def least_s(app: ASGIApp, key: str, tokens: int, requests: int) -> float:
    """Of a request."""
    found = []
    for _ in range(_ROUNDS):
        start = time.process_time()
        for _ in range(requests):
            await ask(app, key, tokens)
        found.append((time.process_time() - start) / requests)
    return min(found)


async def ask(app: ASGIApp, key: str, tokens: int) -> None:
    """One streamed completion; nobody looks at it."""
    body = json.dumps({"model": "fake", "prompt": "hello", "stream": True, "max_tokens": tokens}).encode()
    parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if not parts:
            await asyncio.Event().wait()
        return parts.pop()

    async def send(message: Message) -> None:
        assert message.get("status", 200) == 200, message

    headers = [(b"content-type", b"application/json"), (b"authorization", f"Bearer {key}".encode())]
    path = "/v1/completions"
    await app({"type": "http", "method": "POST", "path": path, "headers": headers}, receive, send)


if __name__ == "__main__":
    uvloop.run(main())
