"""A line of JSON for every request that has ended, without its words unless they are asked for."""

from __future__ import annotations

import logging
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, TextIO

import msgspec

from cluster.request_record import RequestRecord

LOG = logging.getLogger("rankforge.requests")
_PROBES = {"/health", "/ready", "/metrics"}
_ENCODE = msgspec.json.Encoder(enc_hook=str).encode


_FILE_BYTES, _OLD_FILES = 256 << 20, 3
"""A log in a file begins anew at this size, and so many older parts are kept."""


def log_requests_to(place: TextIO | Path) -> None:
    """Lines alone, whatever else is logged how."""
    handler: logging.Handler = (
        RotatingFileHandler(place, maxBytes=_FILE_BYTES, backupCount=_OLD_FILES, delay=True)
        if isinstance(place, Path)
        else logging.StreamHandler(place)
    )
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOG.handlers[:] = [handler]
    LOG.setLevel(logging.INFO)
    LOG.propagate = False


def log_request(record: RequestRecord) -> None:
    """Probes that succeed are not worth a line."""
    if LOG.isEnabledFor(logging.INFO) and not (record.path in _PROBES and record.status == 200):
        line = _ENCODE(line_of(record)).decode()
        LOG.handle(logging.LogRecord(LOG.name, logging.INFO, __file__, 0, line, (), None))  # no stack is read


def line_of(record: RequestRecord) -> dict[str, Any]:
    """What there is to say; times in seconds."""
    line: dict[str, Any] = {
        "time": round(time.time(), 3),
        "id": record.id,
        "key": record.key.record.name if record.key else None,
        "method": record.method[:16],
        "path": record.path[:200].encode(errors="replace").decode(),
        "status": record.status,
        "seconds": round(time.perf_counter() - record.started_s, 6),
    }
    if record.model is not None:
        line |= _generated(record)
    if record.has_left:
        line["left"] = True
    if record.error is not None:
        line["error"] = record.error
    if record.prompt is not None:
        line["prompt"] = record.prompt
    return line


def _generated(record: RequestRecord) -> dict[str, Any]:
    return {
        "model": record.model,
        "answer": record.answer,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "completion_tokens": record.completion_tokens,
        "finish": record.finish,
        "first_token_s": None if record.first_token_s is None else round(record.first_token_s, 6),
    }
