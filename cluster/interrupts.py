"""Ctrl-C and SIGTERM: drafts are removed, workers stopped, and the exit code says which it was."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn


class Heard:
    """What this process has been told to end by."""

    def __init__(self) -> None:
        self.code: int | None = None
        """The exit code that says so; None before it is told."""
        self._holding = 0
        self._pipe: tuple[int, ...] = ()
        """Where the numbers of signals are read, and where the system leaves them at once."""

    def listen(self) -> None:
        """From now on it is an interrupt in the main thread."""
        self._pipe = self._pipe or os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._hear)

    @contextmanager
    def held(self) -> Iterator[None]:
        """What is to be done whole: whatever comes meanwhile interrupts at the end."""
        before = self.code
        self._holding += 1
        try:
            yield
        finally:
            self._holding -= 1
        if self.code != before and not self._holding:
            raise KeyboardInterrupt

    def sent(self) -> int | None:
        """The code, also where the main thread waits for a library, and has not heard yet."""
        with suppress(BlockingIOError):
            for number in os.read(self._pipe[0], 64) if self._pipe else b"":
                if number in (signal.SIGINT, signal.SIGTERM):
                    self.code = self.code or 128 + number
        return self.code

    def end(self) -> None:
        """Nothing is left to clear up: what is heard from here on ends the process at once."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _frame: os._exit(128 + number))

    def _hear(self, number: int, _frame: object) -> None:
        self.code = 128 + number
        if not self._holding:
            raise KeyboardInterrupt


HEARD = Heard()


def leave(code: int) -> NoReturn:
    """As `sys.exit`, which Python overrules where an interrupt went through certain libraries' imports."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
