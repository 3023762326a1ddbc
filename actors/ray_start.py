"""Starting a Ray, or joining one: what prevents it is one line, and signals keep their meaning."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from builders.errors import RankforgeError, UserError


def start_ray(**settings: Any) -> None:
    """On this machine alone, without a word of Ray's own but errors."""
    import ray  # takes a second, which nobody else needs to wait

    with signals_kept(), _InOneLine():
        ray.init(
            address="local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False,
            **settings,
        )


class _InOneLine:
    """Ray raises whatever comes to its mind, plain `Exception` too."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, RankforgeError):
            raise UserError(
                f"Ray does not start on this machine: {' '.join(str(error).split())}; {REMEDY}"
            ) from error


REMEDY = (
    "see that memory, processors and the folder for temporary files are free (Ray's own words are in "
    "ray/session_latest/logs there), or name a running cluster with --address"
)


@contextmanager
def signals_kept() -> Iterator[None]:
    """Ray would end all of itself at the first sign, with nothing drained."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    is_heard = False
    try:
        yield
    except SystemExit:  # Ray's answer to a SIGTERM while it starts
        is_heard = True
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    if is_heard:
        signal.raise_signal(signal.SIGTERM)
