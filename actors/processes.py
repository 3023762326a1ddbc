"""Jobs in processes of this machine: the first error ends them all, and none outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic

from actors.executor import AnyWork, JobT, ResultT, Witness, Work
from builders.errors import RankforgeError, WorkerError

HERE = "this machine"
_LOOK_S = 0.5


@dataclass(frozen=True)
class _News:
    amount: int


@dataclass(frozen=True)
class _Done:
    result: Any


@dataclass(frozen=True)
class _Failed:
    error: RankforgeError


@dataclass(kw_only=True)
class _Worker:
    process: SpawnProcess
    pipe: Connection
    job: int | None = None
    """What it works on."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """As many processes as there are workers; one works in this very process."""

    workers: int

    def run(
        self, work: Work[JobT, ResultT], jobs: Sequence[JobT], names: Sequence[str], witness: Witness
    ) -> list[ResultT]:
        """Every job's result, in the order of the jobs."""
        if min(self.workers, len(jobs)) <= 1:
            return [_run_here(work, number, job, witness) for number, job in enumerate(jobs)]
        running = _Running(work, jobs, min(self.workers, len(jobs)), names, witness)
        try:
            running.finish()
        finally:
            running.stop()
        return [running.results[number] for number in range(len(jobs))]


def _run_here(work: Work[JobT, ResultT], number: int, job: JobT, witness: Witness) -> ResultT:
    def advance(amount: int) -> None:
        witness.advanced(number, amount)
        witness.look()

    witness.look()
    witness.began(number, HERE)
    result = work(job, advance)
    witness.done(number)
    return result


class _Running(Generic[JobT, ResultT]):
    """Workers, each with a pipe of its own: one that is killed holds no lock that others need."""

    def __init__(
        self,
        work: Work[JobT, ResultT],
        jobs: Sequence[JobT],
        workers: int,
        names: Sequence[str],
        witness: Witness,
    ) -> None:
        self.results: dict[int, ResultT] = {}
        self._jobs, self._names, self._witness = jobs, names, witness
        self._open = deque(range(len(jobs)))
        self._workers = [_start(work, f"rankforge-worker-{number}") for number in range(workers)]

    def finish(self) -> None:
        """Hand out jobs and listen until all are done."""
        for worker in self._workers:
            self._give(worker)
        while len(self.results) < len(self._jobs):
            busy = {worker.pipe: worker for worker in self._workers if worker.job is not None}
            for pipe in wait(list(busy), _LOOK_S):
                self._hear(busy[pipe])  # type: ignore[index]
            self._witness.look()

    def stop(self) -> None:
        """Nothing that a worker has not reported is wanted any more."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()

    def _give(self, worker: _Worker) -> None:
        worker.job = self._open.popleft() if self._open else None
        if worker.job is None:
            return
        self._witness.began(worker.job, HERE)
        with suppress(BrokenPipeError):  # the reader finds it dead, with its job
            worker.pipe.send(self._jobs[worker.job])

    def _hear(self, worker: _Worker) -> None:
        assert worker.job is not None, "only busy workers are listened to"
        match self._message(worker):
            case _News(amount):
                self._witness.advanced(worker.job, amount)
            case _Done(result):
                self.results[worker.job] = result
                self._witness.done(worker.job)
                self._give(worker)
            case _Failed(error):
                self._witness.failed(worker.job, HERE, str(error))
                raise error

    def _message(self, worker: _Worker) -> object:
        try:
            return worker.pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            worker.process.join()
            cause = f"its worker died ({_cause(worker.process.exitcode)})"
            assert worker.job is not None, "only busy workers are listened to"
            self._witness.failed(worker.job, HERE, cause)
            raise WorkerError(
                f"{self._names[worker.job]}: {cause}; nothing of it was published; run again, with fewer "
                "--workers if memory ran out"
            ) from error


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return signal.Signals(-exitcode).name
    return f"exit code {exitcode}"


def _start(work: AnyWork, name: str) -> _Worker:
    """A fresh process: a fork would copy this one's threads' locks."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs), name=name, daemon=True)
    with _deaf_to_interrupts():
        process.start()
    theirs.close()
    return _Worker(process=process, pipe=ours)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """What is started here is not interrupted: the parent hears of it and stops its workers."""
    resource_tracker.ensure_running()  # or the first start does, and hears them again afterwards
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(work: AnyWork, pipe: Connection) -> None:
    """The life of a worker."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(_outcome(work, job, pipe))


def _outcome(work: AnyWork, job: Any, pipe: Connection) -> _Done | _Failed:
    """A bug is not an outcome: it ends the worker, which prints its traceback."""
    try:
        return _Done(work(job, lambda amount: pipe.send(_News(amount))))
    except RankforgeError as error:
        return _Failed(error)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers are started by a process"
    parent.join()
    os._exit(1)
