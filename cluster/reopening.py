"""A generator in the making, in a thread of its own: who waits for it can leave."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from actors.messages import Request
from builders.engine_manifest import EngineManifest
from builders.errors import UserError
from cluster.local_engine import OwnedSource


class Replaceable(OwnedSource, Protocol):
    """A generator whose work another one can go on with."""

    @property
    def manifest(self) -> EngineManifest: ...

    def remaining(self) -> list[Request]:
        """What is to be done still."""

    def check(self) -> None:
        """Raise WorkerError if its ranks have failed."""


Opening = Callable[[], Replaceable]


def is_for_people(error: BaseException | None) -> bool:
    """Whether trying again is in vain: what a rank raised is the cause of what its group does."""
    return isinstance(error, UserError) or isinstance(error and error.__cause__, UserError)


class Reopening:
    """Ends in a source or an error. What comes when nobody waits for it any more is closed."""

    def __init__(self, remains: Replaceable | None, opening: Opening, changed: threading.Condition) -> None:
        """`remains` are closed first; the end is notified."""
        self._remains, self._opening, self._changed = remains, opening, changed
        self._is_left = False
        self.source: Replaceable | None = None
        self.error: BaseException | None = None
        threading.Thread(target=self._run, name="reopening", daemon=True).start()

    @property
    def has_ended(self) -> bool:
        return self.source is not None or self.error is not None

    def leave(self) -> None:
        """Wait for it no longer."""
        with self._changed:
            self._is_left, found = True, self.source
        if found:
            found.close()

    def _run(self) -> None:
        with self:
            if self._remains:
                self._remains.close()
            found = self._opening()
            with self._changed:
                self.source = None if self._is_left else found
                self._changed.notify()
            if self.source is None:
                found.close()

    def __enter__(self) -> None: ...

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        """Whatever went wrong is told."""
        with self._changed:
            self.error = error
            self._changed.notify()
        return True
