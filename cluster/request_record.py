"""What is noted of one request from its first byte to its last: for its log line, its key and the metrics."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cluster.key_limits import KeyUse

_GIVEN = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_NAME = "rankforge.request"
"""Where it is in the scope."""


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """Filled in by whoever learns something."""

    id: str
    """That the caller gave, or one made here."""
    method: str
    path: str
    started_s: float = field(default_factory=time.perf_counter)
    key: KeyUse | None = None
    """None where nobody needs one."""
    status: int | None = None
    """None until an answer begins."""
    model: str | None = None
    answer: str | None = None
    """The id in its body, and the first part of its requests' names at the engine."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    charged_tokens: int = 0
    """None of a request that the engine refused before its first token."""
    finish: list[str] = field(default_factory=list)
    """Of every text: stop, length, abort or error."""
    first_token_s: float | None = None
    """After it started."""
    has_left: bool = False
    """Its caller did, before the answer was whole."""
    error: str | None = None
    prompt: Any = None
    """Only where prompts are logged."""


@contextmanager
def tokens_of(record: RequestRecord, most: int) -> Iterator[None]:
    """The key has so many left, or the request is refused; in the end it has used what it used."""
    if record.key is None:
        yield
        return
    record.key.reserve(most)
    try:
        yield
    finally:
        record.key.settle(most, record.charged_tokens)


def record_of(scope: Mapping[str, Any]) -> RequestRecord:
    """The request's. Of an application without `Watch`, one that nobody reads."""
    found = scope.get(_NAME)
    return found if isinstance(found, RequestRecord) else _begun(scope, f"req-{secrets.token_hex(16)}")


def begin_record(scope: MutableMapping[str, Any]) -> RequestRecord:
    """By the name that the caller gave, if it is one that can be logged."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    name = given.decode() if _GIVEN.fullmatch(given) else f"req-{secrets.token_hex(16)}"
    scope[_NAME] = record = _begun(scope, name)
    return record


def _begun(scope: Mapping[str, Any], name: str) -> RequestRecord:
    return RequestRecord(id=name, method=scope["method"], path=scope["path"])
