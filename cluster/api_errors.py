"""Errors as OpenAI's clients know them: a status, and a body of one shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct

from builders.errors import BusyError, RankforgeError, UserError


class ErrorBody(Struct, frozen=True):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    """The field that is to blame."""
    code: str | None
    """For programs."""


class ErrorAnswer(Struct, frozen=True):
    """The body of every answer that is no success."""

    error: ErrorBody


@dataclass(kw_only=True, eq=False)
class ApiError(Exception):
    """Ends a request; what its caller is told."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        return msgspec.json.encode(
            ErrorAnswer(ErrorBody(message=self.message, type=self.type, param=self.param, code=self.code))
        )


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The caller's mistake."""
    return ApiError(status=400, message=message, param=param, code=code)


def unsupported(param: str, message: str) -> ApiError:
    """What OpenAI has and this does not."""
    return invalid(f"Unsupported parameter: '{param}': {message}", param, "unsupported_parameter")


def full(message: str, retry_after_s: int) -> ApiError:
    """The same may be taken later."""
    return ApiError(
        status=429,
        message=message,
        type="requests",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(retry_after_s)},
    )


def failed(message: str, *, code: str = "engine_failed", retry_after_s: int | None = None) -> ApiError:
    """Nobody's mistake who asks."""
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return ApiError(status=503, message=message, type="server_error", code=code, headers=headers)


def api_error(error: RankforgeError, retry_after_s: int) -> ApiError:
    """What a caller is told of an error of the engine or its parameters."""
    if isinstance(error, BusyError):
        return full(str(error), retry_after_s)
    if isinstance(error, UserError):
        named = re.match(r"(\w+)[=:]", str(error))
        return invalid(str(error), named[1] if named else None, "invalid_value")
    return failed(str(error))
