"""Which key opens which route: /health none, administrative ones an admin's, all others a user's."""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.access import is_loopback
from cluster.api_errors import ApiError
from cluster.connection import send_error
from cluster.key_limits import KeyUse
from cluster.keyring import Keyring
from cluster.request_record import record_of

OPEN = frozenset({"/health"})
ADMINISTRATIVE = frozenset({"/metrics", "/admin/drain"})
FOR_BOTH = frozenset({"/ready"})


class Guard:
    """ASGI middleware. Nothing of a request but its path and its headers is looked at before its key."""

    def __init__(self, app: ASGIApp, keys: Keyring, *, open_metrics: bool) -> None:
        self._app, self._keys = app, keys
        self._open = OPEN | {"/metrics"} if open_metrics else OPEN

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open:
            await self._app(scope, receive, send)
            return
        try:
            use = self._admitted(scope)
        except ApiError as error:
            record_of(scope).error = error.code or error.type
            await send_error(send, error)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            use.end()

    def _admitted(self, scope: Scope) -> KeyUse:
        """A key that opens this route and has something left; it counts one request more."""
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        use = self._keys.find(given[0].decode("latin-1") if len(given) == 1 else "")
        record_of(scope).key = use
        path, is_admin = scope["path"], use.record.is_admin
        if path not in FOR_BOTH and is_admin != (path in ADMINISTRATIVE):
            raise _closed("an admin key" if not is_admin else "a user's key")
        use.begin()
        return use


class Keyless:
    """In its place where there are no keys: nobody is an administrator. /metrics is as open as all else.

    Pages of other origins are refused: browsers send some of their requests without asking first.
    """

    def __init__(self, app: ASGIApp, *, only_local: bool, origins: Collection[str] = ()) -> None:
        self._app, self._only_local = app, only_local
        self._origins = frozenset(origin.lower() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal:
            await send_error(send, refusal)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        hosts = _given(scope, b"host")
        if self._only_local and not all(map(_is_local, hosts)):
            return ApiError(
                status=403,
                message="This server answers to localhost alone: it has no --keys_file",
                code="host_not_allowed",
            )
        own = {f"{scheme}://{host}" for scheme in ("http", "https") for host in hosts}
        if strange := [one for one in _given(scope, b"origin") if one not in self._origins | own]:
            return ApiError(
                status=403,
                message=f"Pages of {strange[0][:200]!r} may not use this server; name them in cors_origins",
                code="origin_not_allowed",
            )
        if scope["path"] in ADMINISTRATIVE - {"/metrics"}:
            return _closed("an admin key; this server has no --keys_file")
        return None


_PORT = re.compile(r":[0-9]*$")


def _given(scope: Scope, header: bytes) -> list[str]:
    return [value.decode("latin-1").lower() for name, value in scope["headers"] if name == header]


def _is_local(host: str) -> bool:
    """A Host header: a name or an address, and a port."""
    return is_loopback(_PORT.sub("", host))


def _closed(needed: str) -> ApiError:
    return ApiError(
        status=403,
        message=f"You are not allowed to use this route with this API key: it takes {needed}",
        code="insufficient_permissions",
    )
