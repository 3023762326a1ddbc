"""The HTTP application: OpenAI's endpoints over engines, whoever runs them."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from builders.errors import RankforgeError
from cluster.api_config import ApiConfig
from cluster.api_document import document
from cluster.api_errors import ApiError, api_error
from cluster.api_generate import CHAT, COMPLETION, Generate
from cluster.api_models import Metrics, Plain
from cluster.api_service import Service
from cluster.served_model import ServedModel

Opening = Callable[[], AbstractAsyncContextManager[Sequence[ServedModel]]]
"""Opens the models when the application starts, in its event loop, and closes them when it ends."""


def create_app(opening: Opening, config: ApiConfig, *, metrics: Metrics | None = None) -> Starlette:
    """An ASGI application; requests are taken when the models are open."""
    service = Service(config)
    plain = Plain(service, metrics)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with opening() as models:
            service.serve(models)
            yield

    routes = [
        Route("/v1/chat/completions", Generate(service, CHAT), methods=["POST"]),
        Route("/v1/completions", Generate(service, COMPLETION), methods=["POST"]),
        Route("/v1/models", plain.models),
        Route("/v1/models/{model:path}", plain.model),
        Route("/v1/embeddings", plain.embeddings, methods=["POST"]),
        Route("/tokenize", plain.tokenize, methods=["POST"]),
        Route("/detokenize", plain.detokenize, methods=["POST"]),
        Route("/health", plain.health),
        Route("/ready", plain.ready),
        Route("/metrics", plain.metrics),
        Route("/openapi.json", _document),
    ]
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(RequestIds)],
        exception_handlers={
            ApiError: _refused,
            RankforgeError: _refused,
            HTTPException: _no_such_thing,
            ClientDisconnect: _gone,
            Exception: _broken,
        },
    )


async def _document(_request: Request) -> Response:
    return Response(msgspec.json.encode(document()), media_type="application/json")


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError | RankforgeError), "what this handles"
    return _answer(error if isinstance(error, ApiError) else api_error(error, 1))


async def _no_such_thing(request: Request, error: Exception) -> Response:
    """A path or a method that there is not."""
    assert isinstance(error, HTTPException), "what this handles"
    what = f"({request.method} {request.url.path[:200]})"
    if error.status_code == 405:
        message, code = f"Not allowed to {request.method} on {request.url.path[:200]}", "method_not_supported"
    else:
        message, code = f"Invalid URL {what}", "unknown_url"
    found = ApiError(status=error.status_code, message=message, code=code, headers=dict(error.headers or {}))
    return _answer(found)


async def _gone(_request: Request, _error: Exception) -> Response:
    """Nobody reads it."""
    return Response(status_code=499)


async def _broken(request: Request, _error: Exception) -> Response:
    """A mistake of this program: its trace is logged by the server, and is no caller's business."""
    headers = {"Connection": "close", "x-request-id": request.scope.get(_NAME, "")}  # servers close it
    return _answer(
        ApiError(status=500, message="The server had an error", type="server_error", headers=headers)
    )


def _answer(error: ApiError) -> Response:
    return Response(error.body, error.status, dict(error.headers), "application/json")


_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NAME = "rankforge.request_id"
"""Where it is in the scope."""


class RequestIds:
    """Every answer says whose it is: by the name that the caller gave, or one made here."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        name = given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(16)}"
        scope[_NAME] = name

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = name
            await send(message)

        await self._app(scope, receive, named)
