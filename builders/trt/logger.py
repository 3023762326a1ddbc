"""What TensorRT has to say, kept for the error that follows it."""

from __future__ import annotations

from typing import Any


def new_logger(trt: Any) -> tuple[Any, list[str]]:
    """A logger for TensorRT and the list that its warnings and errors go to."""
    messages: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR and _is_news(message):
                messages.append(message)

    return Logger(), messages


def _is_news(message: str) -> bool:
    """On a machine without a driver every build complains of that first, and goes on."""
    return "CUDA driver version is insufficient" not in message and "no CUDA-capable device" not in message
