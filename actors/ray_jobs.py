"""Jobs on a Ray cluster: what a worker that is lost had in hand is done again."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

import ray

from actors.endings import cause_of, ending
from actors.executor import JobT, ResultT, Witness, Work
from actors.ray_worker import Needs, RayWorker
from builders.errors import UserError, WorkerError

_LOOK_S = 0.1
_DEAF_S = 5.0
"""Who was stopped for longer, or busy elsewhere, has not listened, and nobody else was silent."""
_IDLE_S = 10.0
"""Who has nothing to do for so long goes: what it takes of the cluster may be of use to others."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long things may take, and how often they may fail; nothing is waited for without a bound."""

    attempts: int = 3
    """Of one job, before its error is reported."""
    silent_s: float = 30.0
    """A worker that answers for none of these is stopped or cut off."""
    start_s: float = 600.0
    """Until the first worker runs: a cluster may have to grow for it."""
    elsewhere_s: float = 20.0
    """A job that failed on a node waits so long for a worker on another."""


@dataclass(frozen=True, kw_only=True)
class RayJobs:
    """Carries out jobs in actors, spread over nodes; there may be more than the cluster has room for yet."""

    workers: int
    needs: Needs
    patience: Patience = Patience()
    keep: bool = False
    """Workers that have done well wait for more jobs: to start takes seconds. `close` ends them."""
    _kept: list[RayWorker] = field(default_factory=list, init=False)

    def run(
        self, work: Work[JobT, ResultT], jobs: Sequence[JobT], names: Sequence[str], witness: Witness
    ) -> list[ResultT]:
        """Every job's result, in the order of the jobs."""
        running = _Running(work, jobs, names, witness, self, self._kept)
        self._kept.clear()
        try:
            running.finish()
            self._kept.extend(running.released() if self.keep else ())
        finally:
            running.stop()
        return [running.results[number] for number in range(len(jobs))]

    def close(self) -> None:
        """End those that wait."""
        while self._kept:
            self._kept.pop().kill()


class _Running(Generic[JobT, ResultT]):
    """Workers come and go; a job is open, in one worker's hands, or has its result."""

    def __init__(
        self,
        work: Work[JobT, ResultT],
        jobs: Sequence[JobT],
        names: Sequence[str],
        witness: Witness,
        terms: RayJobs,
        workers: Sequence[RayWorker],
    ) -> None:
        self.results: dict[int, ResultT] = {}
        self._work, self._jobs, self._names, self._witness = work, jobs, names, witness
        self._terms, self._patience = terms, terms.patience
        self._open = deque(range(len(jobs)))
        self._failed_on: dict[int, list[str]] = {number: [] for number in range(len(jobs))}
        """The nodes on which attempts at a job were lost, one for each."""
        self._advanced = dict.fromkeys(range(len(jobs)), 0)
        self._workers = list(workers)
        self._began = self._listened = time.monotonic()
        for worker in workers:
            worker.pardon()
        self._lost = 0
        """Workers that died without a job."""

    def finish(self) -> None:
        """Hand out jobs and listen until all are done."""
        while len(self.results) < len(self._jobs):
            self._hire()
            self._hand_out()
            self._listen()
            self._witness.look()

    def released(self) -> list[RayWorker]:
        """The workers that run, when all is done."""
        found = [worker for worker in self._workers if worker.where]
        self._workers = [worker for worker in self._workers if worker not in found]
        return found

    def stop(self) -> None:
        """Nothing that a worker has not reported is wanted any more."""
        for worker in self._workers:
            worker.kill()

    def _hire(self) -> None:
        """As many workers as there is work for."""
        unfinished = len(self._jobs) - len(self.results)
        while len(self._workers) < min(self._terms.workers, unfinished):
            avoided = {node for number in self._open for node in self._failed_on[number]}
            self._workers.append(RayWorker(self._terms.needs, avoided))

    def _hand_out(self) -> None:
        for worker in self._workers:
            if worker.where is None or worker.job is not None:
                continue
            number = self._next_for(worker.where.node)
            if number is not None:
                self._open.remove(number)
                self._witness.began(number, str(worker))
                worker.begin(number, self._work, self._jobs[number])

    def _next_for(self, node: str) -> int | None:
        """A job that has not failed on this node; one that has only where no other node is to be had."""
        fresh = (number for number in self._open if node not in self._failed_on[number])
        number = next(fresh, None)
        return self._stuck() if number is None else number

    def _stuck(self) -> int | None:
        for number in self._open:
            if not any(self._may_serve(worker, number) for worker in self._workers):
                return number
        return None

    def _may_serve(self, worker: RayWorker, number: int) -> bool:
        if worker.where is None:
            return worker.age_s < self._patience.elsewhere_s
        return worker.where.node not in self._failed_on[number]

    def _listen(self) -> None:
        calls = {call: worker for worker in self._workers for call in worker.calls()}
        for call in _ended(list(calls)):
            if calls[call] in self._workers:
                self._hear(calls[call], call)
        if time.monotonic() - self._listened > _DEAF_S:
            for worker in self._workers:
                worker.pardon()
        self._listened = time.monotonic()
        for worker in list(self._workers):
            self._look_at(worker)

    def _hear(self, worker: RayWorker, call: Any) -> None:
        error = ending(call)
        if call is worker.doing:
            self._outcome(worker, error)
        elif error is not None:
            self._lose(worker, error, cause_of(error))
        else:
            worker.answered(call)
            self._count(worker)

    def _outcome(self, worker: RayWorker, error: BaseException | None) -> None:
        if error is not None:
            self._lose(worker, error, cause_of(error))
            return
        assert worker.job is not None, "a job has ended"
        self.results[worker.job] = worker.take()
        self._count(worker)
        self._witness.done(worker.job)
        worker.job = None

    def _count(self, worker: RayWorker) -> None:
        if worker.job is not None and worker.amount > self._advanced[worker.job]:
            self._witness.advanced(worker.job, worker.amount - self._advanced[worker.job])
            self._advanced[worker.job] = worker.amount

    def _look_at(self, worker: RayWorker) -> None:
        if worker.where is None:
            if not any(each.where for each in self._workers) and self._late():
                raise WorkerError(
                    f"Ray has no room for a worker of {self._terms.needs} in {self._patience.start_s:g} s; "
                    "free some, add nodes, or ask for less"
                )
            return
        if worker.idle_s > _IDLE_S and not self._open:
            self._dismiss(worker)
            return
        silence = worker.silence_s
        if silence > self._patience.silent_s:
            self._lose(worker, None, f"no sign of life for {silence:.1f} s: it is stopped, or cut off")

    def _leave(self, node: str) -> None:
        """Who has nothing to do where something failed makes room for a worker elsewhere."""
        for worker in [each for each in self._workers if each.where and each.where.node == node]:
            if worker.job is None:
                self._dismiss(worker)

    def _dismiss(self, worker: RayWorker) -> None:
        self._workers.remove(worker)
        worker.kill()

    def _late(self) -> bool:
        return time.monotonic() - self._began > self._patience.start_s

    def _lose(self, worker: RayWorker, error: BaseException | None, cause: str) -> None:
        """The worker goes; its job is done again, or has failed too often."""
        self._dismiss(worker)
        number = worker.job
        if number is None:
            self._lost += 1
            if self._lost > self._patience.attempts * self._terms.workers:
                raise WorkerError(f"{worker}: {cause}; workers do not start") from error
            return
        self._witness.failed(number, str(worker), cause)
        self._witness.advanced(number, -self._advanced[number])
        self._advanced[number] = 0
        assert worker.where is not None, "who has a job has told where it is"
        self._failed_on[number].append(worker.where.node)
        self._open.appendleft(number)
        self._leave(worker.where.node)
        if isinstance(error, UserError):
            raise type(error)(f"{self._names[number]} on {worker}: {error}") from error
        if len(self._failed_on[number]) >= self._patience.attempts:
            raise WorkerError(
                f"{self._names[number]}: failed {self._patience.attempts} times, last on {worker}: {cause}; "
                "what is done stays in the store; look into it, then run again"
            ) from error


def _ended(calls: list[Any]) -> list[Any]:
    """All calls that are over, as soon as one is; none, if for a while none is."""
    if not calls:
        time.sleep(_LOOK_S)
        return []
    if not ray.wait(calls, timeout=_LOOK_S)[0]:
        return []
    return ray.wait(calls, num_returns=len(calls), timeout=0)[0]
