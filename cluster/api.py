"""The HTTP application: OpenAI's endpoints over engines, whoever runs them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from builders.errors import RankforgeError
from cluster.access import Access
from cluster.api_config import ApiConfig
from cluster.api_document import document
from cluster.api_errors import ApiError, api_error
from cluster.api_generate import CHAT, COMPLETION, Generate
from cluster.api_guard import Guard, Keyless
from cluster.api_models import Plain
from cluster.api_service import Catalogue, Service
from cluster.api_watch import Watch
from cluster.connection import send_json
from cluster.keyring import Keyring
from cluster.request_record import record_of
from cluster.served_model import ServedModel

Opening = Callable[[], AbstractAsyncContextManager[Sequence[ServedModel] | Catalogue]]
"""Opens the models when the application starts, in its event loop, and closes them when it ends."""


def create_app(
    opening: Opening, config: ApiConfig, *, access: Access | None = None, processes: int = 1
) -> Starlette:
    """An ASGI application; requests are taken when the models are open.

    It is one of several `processes` that share what is to be limited.
    """
    access, config = access or Access(), config.shared_by(processes)
    service = Service(config, log_prompts=access.log_prompts, separate_caches=access.separate_caches)
    plain = Plain(service)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with opening() as models:
            service.follow(models)
            try:
                yield
            finally:
                service.grammars.close()

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
        Route("/admin/drain", plain.drain, methods=["POST", "DELETE"]),
        Route("/openapi.json", _Document(has_keys=access.keys_file is not None)),
    ]
    service.counts.routes = frozenset(route.path for route in routes)
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=_middleware(access, service, processes),
        exception_handlers={
            ApiError: _refused,
            RankforgeError: _refused,
            HTTPException: _no_such_thing,
            ClientDisconnect: _gone,
            Exception: _broken,
        },
    )
    app.state.service = service
    return app


def _middleware(access: Access, service: Service, processes: int) -> list[Middleware]:
    """From the outside in. What a browser asks before it sends a key is answered without one."""
    found = [Middleware(Watch, service.counts, is_logged=access.log_requests)]
    if access.cors_origins:
        found.append(Middleware(CORSMiddleware, allow_origins=access.cors_origins, **_CORS))
    if access.keys_file:
        keys = Keyring(access.keys_file, processes=processes)
        return [*found, Middleware(Guard, keys, open_metrics=access.open_metrics)]
    return [*found, Middleware(Keyless, only_local=access.only_local, origins=access.cors_origins)]


_CORS: dict[str, Any] = {
    "allow_methods": ["GET", "POST"],
    "allow_headers": ["Authorization", "Content-Type", "X-Request-Id"],
    "expose_headers": ["X-Request-Id", "Retry-After"],
}
"""What a page may send and read. No cookies: a key is sent on purpose."""


@dataclass(frozen=True, kw_only=True)
class _Document:
    """Of what is served here."""

    has_keys: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, msgspec.json.encode(document(has_keys=self.has_keys)))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError | RankforgeError), "what this handles"
    found = error if isinstance(error, ApiError) else api_error(error, 1)
    record = record_of(request.scope)
    record.error = record.error or found.code or found.type
    return _answer(found)


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
    name = record_of(request.scope).id
    headers = {"Connection": "close", "x-request-id": name}  # servers close it
    message = f"The server had an error; its log says which, of request {name}"
    return _answer(ApiError(status=500, message=message, type="server_error", headers=headers))


def _answer(error: ApiError) -> Response:
    return Response(error.body, error.status, dict(error.headers), "application/json")
