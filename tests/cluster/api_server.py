"""The API on a loopback port, as uvicorn serves it."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.types import ASGIApp
from transformers import PreTrainedTokenizerBase

from cluster.access import Access
from cluster.api import create_app
from cluster.api_config import ApiConfig
from cluster.local_app import served
from cluster.served_model import ServedModel
from tests.actors.test_detokenizer import byte_level
from tests.cluster.fake_engine import FakeEngine

TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}<|turn|>assistant: "
)


def fake_app(
    *engines: FakeEngine,
    config: ApiConfig | None = None,
    access: Access | None = None,
    chat_template: str | None = TEMPLATE,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> ASGIApp:
    config = config or ApiConfig()

    @asynccontextmanager
    async def opening() -> AsyncIterator[Sequence[ServedModel]]:
        words = tokenizer or byte_level()
        models = [served(engine, words, config, chat_template=chat_template) for engine in engines]
        yield models
        for model in models:
            await model.close()

    return create_app(opening, config, access=access)


@contextmanager
def serving(app: ASGIApp, *, log_level: str = "warning") -> Iterator[str]:
    """Its address. Returns when it takes requests, and ends when it has ended."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, lifespan="on", log_level=log_level, timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "it starts"
            time.sleep(0.01)
        (socket,) = server.servers[0].sockets
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
