"""Ctrl-C and SIGTERM: drafts are removed, workers stopped, and the exit code says which it was."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from typing import NoReturn


class Heard:
    """What this process has been told to end by."""

    def __init__(self) -> None:
        self.code: int | None = None
        """The exit code that says so; None before it is told."""

    def listen(self) -> None:
        """From now on it is an interrupt in the main thread."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._hear)

    def end(self) -> None:
        """Nothing is left to clear up: what is heard from here on ends the process at once."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _frame: os._exit(128 + number))

    def _hear(self, number: int, _frame: object) -> NoReturn:
        self.code = 128 + number
        raise KeyboardInterrupt


HEARD = Heard()


def leave(code: int) -> NoReturn:
    """As `sys.exit`, which Python overrules where an interrupt went through certain libraries' imports."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
