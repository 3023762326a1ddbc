"""An engine whose ranks may fail: others take their places, and its callers see no more than a pause."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import NoReturn

from actors.engine_stats import EngineStats, continued
from actors.messages import Request, Tokens
from builders.engine_manifest import EngineManifest
from builders.errors import ArtifactError, RequestError, UserError, WorkerError
from builders.limits import Limits
from cluster.engine_client import EngineLoad, ModelFacts
from cluster.local_engine import MAX_WAITING, LocalEngine
from cluster.reopening import Opening, Reopening, Replaceable, is_for_people
from cluster.trials import STEADY_STEPS, Trials

_LOG = logging.getLogger("rankforge.recovery")


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How often, and how soon after each other, ranks are started anew."""

    failures: int = 8
    """Of ranks or of their start, one after another without a token between them: then the engine fails."""
    first_wait_s: float = 0.5
    """After the second failure; the first is not waited after, and each wait doubles the one before."""
    longest_wait_s: float = 30.0
    steady_s: float = 60.0
    """Ranks that had nothing to do for so long count as if a token had come from them."""

    def wait_s(self, failures: int) -> float:
        """Before the next start."""
        return min(self.longest_wait_s, self.first_wait_s * 2.0 ** (failures - 2)) if failures > 1 else 0.0


@dataclass(kw_only=True)
class Trouble:
    """Failures without a token between them."""

    cause: WorkerError
    """The first."""
    failures: int = 0
    mended: float = 0.0
    """When ranks were ready last."""
    steps: int = 0
    """Done since."""


class RecoveringSource:
    """An `OwnedSource`. One thread uses it, but for what says otherwise.

    Where ranks fail again before any token comes, the requests go on one after another: who is alone with a
    failure then is not tried again, and the others are.
    """

    def __init__(self, name: str, opening: Opening, patience: Patience | None = None) -> None:
        """Opens it, and raises what that raises. The log knows it by its name."""
        self._name, self._opening, self._patience = name, opening, patience or Patience()
        self._source: Replaceable = opening()
        self._is_open = True
        self._trouble: Trouble | None = None
        self._trials = Trials()
        self._lost: deque[RequestError] = deque()
        self._abandoned = False
        self._changed = threading.Condition()
        self.recovering: str | None = None
        """Why nothing is done now; for any thread."""
        self._counted = EngineStats(), self._source

    @property
    def manifest(self) -> EngineManifest:
        return self._source.manifest

    @property
    def limits(self) -> Limits:
        return self._source.limits

    @property
    def eos(self) -> frozenset[int]:
        return self._source.eos

    @property
    def has_work(self) -> bool:
        """Ranks that have failed are work, too."""
        return bool(self._lost or self._trials.waiting) or self._source.has_work or not self._is_sound()

    def add(self, request: Request) -> None:
        """Queue a request, or refuse what can never be done."""
        self._source.add(request)

    def cancel(self, request: str, index: int | None = None) -> None:
        """End a request's texts, or one of them, without further news."""
        self._source.cancel(request, index)
        self._trials.cancel(request, index)
        if request == self._trials.current and all(one.id != request for one in self._source.remaining()):
            self._trials.forget(request)

    def step(self) -> list[Tokens]:
        """The news of one step; none, where it took new ranks."""
        if self._lost:
            raise self._lost.popleft()
        try:
            news = self._next()
        except WorkerError as error:
            self._recover(error)
            return []
        if self._trouble:
            self._get_over(self._trouble, news)
        return news

    def stats(self) -> EngineStats:
        """Of all ranks that there were; for any thread."""
        before, source = self._counted
        return continued(before, source.stats())

    def abandon(self) -> None:
        """From any thread: a recovery, if there is one, ends with its cause."""
        with self._changed:
            self._abandoned = True
            self._changed.notify()

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._source.close()

    def _is_sound(self) -> bool:
        try:
            self._source.check()
        except WorkerError:
            return False
        return True

    def _next(self) -> list[Tokens]:
        if request := self._trials.next():
            self._add_again(request)
        if not self._source.has_work:
            self._source.check()
        return self._source.step()

    def _get_over(self, trouble: Trouble, news: list[Tokens]) -> None:
        """A step is done since."""
        trouble.steps += 1
        self._trials.take(news)
        if news or trouble.steps >= STEADY_STEPS:
            trouble.failures = 0
            if not self._trials.waiting and self._trials.current is None:
                self._trouble = None

    def _recover(self, error: WorkerError) -> None:
        """Others take the places of ranks that have failed, and go on with what these had begun."""
        since, self.recovering = time.monotonic(), str(error)
        remaining = self._remaining(error)
        trouble, happens_again = self._troubled(error, is_idle=not remaining)
        _LOG.warning("%s: %s; starting its ranks anew for %d requests", self._name, error, len(remaining))
        self._source, self._is_open = self._reopened(trouble), True
        if happens_again:
            self._trials.start(remaining)
        else:
            for request in remaining:
                self._add_again(request)
        trouble.mended, trouble.steps = time.monotonic(), 0
        self._has_recovered(trouble.mended - since)

    def _remaining(self, error: WorkerError) -> list[Request]:
        """All but what is to blame."""
        blamed = self._trials.current
        remaining = [*self._source.remaining(), *self._trials.waiting]
        if blamed is not None:
            self._lost.append(RequestError(blamed, f"the ranks fail on this request: {error}"))
        return [request for request in remaining if request.id != blamed]

    def _troubled(self, error: WorkerError, *, is_idle: bool) -> tuple[Trouble, bool]:
        """What this failure is a part of, and whether it is more than this."""
        trouble = self._trouble
        if trouble and is_idle and time.monotonic() - trouble.mended > self._patience.steady_s:
            trouble = None
        self._trouble = trouble or Trouble(cause=error)
        self._trouble.failures += 1
        return self._trouble, trouble is not None

    def _add_again(self, request: Request) -> None:
        try:
            self._source.add(request)
        except UserError as error:  # the cache may have become smaller
            self._lost.append(RequestError(request.id, f"the request cannot go on: {error}"))
            self._trials.forget(request.id)

    def _has_recovered(self, seconds: float) -> None:
        once = EngineStats(recoveries=1, recovery_seconds=seconds)
        self._counted = continued(self.stats(), once), self._source
        self.recovering = None
        _LOG.warning("%s: its ranks are ready again after %.1f s", self._name, seconds)

    def _reopened(self, trouble: Trouble) -> Replaceable:
        """Ranks that are ready. What ends this is the first cause, with what came of it."""
        while trouble.failures < self._patience.failures:
            self._wait(self._patience.wait_s(trouble.failures), trouble)
            if found := self._opened(trouble):
                return found
            trouble.failures += 1
        raise WorkerError(f"{trouble.cause}; {trouble.failures} failures in a row") from trouble.cause

    def _opened(self, trouble: Trouble) -> Replaceable | None:
        """None where it may work later."""
        remains, self._is_open = self._source if self._is_open else None, False
        reopening = Reopening(remains, self._opening, self._changed)
        with self._changed:
            self._changed.wait_for(lambda: reopening.has_ended or self._abandoned)
        if self._abandoned:
            reopening.leave()
            raise trouble.cause
        if reopening.source is None:
            self._judge(reopening.error, trouble)
        elif reopening.source.manifest.key != self._source.manifest.key:
            reopening.leave()
            self._end(ArtifactError("it is another engine now"), trouble)
        return reopening.source

    def _judge(self, error: BaseException | None, trouble: Trouble) -> None:
        """What only people can mend is not tried again."""
        if is_for_people(error):
            self._end(error, trouble)
        _LOG.warning("%s: its ranks do not start: %s", self._name, error)

    def _end(self, error: BaseException | None, trouble: Trouble) -> NoReturn:
        raise WorkerError(f"{trouble.cause}; it cannot be opened again: {error}") from error

    def _wait(self, seconds: float, trouble: Trouble) -> None:
        with self._changed:
            if self._changed.wait_for(lambda: self._abandoned, seconds):
                raise trouble.cause


class RecoveringEngine(LocalEngine):
    """An `EngineClient` that says when its ranks are being started anew."""

    def __init__(
        self, source: RecoveringSource, facts: ModelFacts, *, max_waiting: int = MAX_WAITING
    ) -> None:
        super().__init__(source, facts, max_waiting=max_waiting)
        self._recovery = source

    def load(self) -> EngineLoad:
        return dataclasses.replace(super().load(), recovering=self._recovery.recovering)

    async def close(self) -> None:
        """A recovery is not waited for."""
        self._recovery.abandon()
        await super().close()
