"""From bytes to the body of a request, or OpenAI's words for what is wrong with it."""

from __future__ import annotations

import asyncio
import re
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from starlette.requests import Request

from cluster.api_config import ApiConfig
from cluster.api_errors import ApiError, invalid, unsupported
from cluster.api_requests import REFUSED, SETTLED

BodyT = TypeVar("BodyT", bound=Struct)

_EXPECTED = re.compile(r"Expected `(?P<expected>.*)`, got `(?P<got>.*)`")
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`")


async def read_body(request: Request, kind: type[BodyT], config: ApiConfig) -> BodyT:
    """Whatever is too long, too slow or malformed is refused as early as it shows."""
    media = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media != "application/json":
        raise ApiError(
            status=415, message=f"Unsupported content type '{media}': use 'Content-Type: application/json'"
        )
    try:
        async with asyncio.timeout(config.body_timeout_s):
            data = await _read(request, config.max_body_bytes)
    except TimeoutError:
        raise ApiError(
            status=408, message=f"The body took more than {config.body_timeout_s:g} s to come"
        ) from None
    return decoded(data, kind)


async def _read(request: Request, most: int) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise _too_long(most)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise _too_long(most)
        parts.append(part)
    return b"".join(parts)


def _too_long(most: int) -> ApiError:
    return ApiError(
        status=413,
        message=f"The body is too long: it may have {most} bytes",
        code="request_too_large",
        headers={"Connection": "close"},
    )


def decoded(data: bytes, kind: type[BodyT]) -> BodyT:
    """JSON of the kind's fields."""
    fields = _parsed(data)
    known = kind.__struct_fields__
    for name, value in fields.items():
        if name in known or value is None or _is_settled(name, value):
            continue
        if name in REFUSED:
            raise unsupported(name, REFUSED[name])
        raise invalid(f"Unknown parameter: '{name}'.", name, "unknown_parameter")
    try:
        return msgspec.convert({name: fields[name] for name in fields if name in known}, kind)
    except msgspec.ValidationError as error:
        raise _mistaken(str(error)) from None


def _is_settled(name: str, value: object) -> bool:
    """It asks for what is done anyway."""
    if name not in SETTLED:
        return False
    done = SETTLED[name]
    if type(value) is type(done) and value == done:
        return True
    raise unsupported(name, f"only {msgspec.json.encode(done).decode()} is possible")


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"We could not parse the JSON body of your request: {error}") from None
    if not isinstance(found, dict):
        raise invalid("The JSON body of your request must be an object")
    return found


def _mistaken(text: str) -> ApiError:
    """A field of a wrong type or value."""
    what, _, path = text.partition(" - at `$")
    path = path.rstrip("`").lstrip(".")
    if missing := _MISSING.fullmatch(what) or _UNKNOWN.fullmatch(what):
        name = f"{path}.{missing['name']}".lstrip(".")
        if missing.re is _MISSING:
            return invalid(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
        return invalid(f"Unknown parameter: '{name}'.", name, "unknown_parameter")
    if found := _EXPECTED.fullmatch(what):
        kinds = found["expected"].replace(" | ", " or ")
        words = f"Invalid type for '{path}': expected {kinds}, but got {found['got']} instead."
        return invalid(words, path, "invalid_type")
    return invalid(f"Invalid value for '{path}': {what}", path, "invalid_value")
