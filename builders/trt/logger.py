"""What TensorRT has to say, kept for the error that follows it and for what a plan needs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any


@dataclass(kw_only=True)
class Log:
    """What was said since the log was begun."""

    errors: list[str] = field(default_factory=list)
    activation_bytes: list[int] = field(default_factory=list)
    """What an execution needs beside weights and caches, for every profile of a plan that was built."""


def new_logger(trt: Any) -> tuple[Any, Log]:
    """The logger for TensorRT and the log that its messages go to from now on.

    TensorRT keeps the first logger that it was ever given for all that follows.
    """
    log = Log()
    hear(trt, log)
    return _logger(trt), log


def hear(trt: Any, log: Log) -> None:
    """What TensorRT says from now on goes to this log."""
    _logger(trt).heard = log


@cache
def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        heard: Log

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR and _is_news(message):
                self.heard.errors.append(message)
            elif found := _ACTIVATIONS.fullmatch(message):
                self.heard.activation_bytes.append(int(found[1]))

    return Logger()


_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")


def _is_news(message: str) -> bool:
    """On a machine without a driver every build complains of that first, and goes on."""
    return "CUDA driver version is insufficient" not in message and "no CUDA-capable device" not in message
