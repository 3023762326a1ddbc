"""Jobs in processes of their own: the first error ends them all, and none outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, TypeVar

from builders.errors import RankforgeError, WorkerError

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

Advance = Callable[[int, int], None]
"""Hears of a job and how much of it is done since it was last heard of."""

Work = Callable[[JobT, Callable[[int], None]], ResultT]
"""Does one job, saying what it has done on the way; a function of a module."""


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


def run_jobs(
    work: Work[JobT, ResultT], jobs: Sequence[JobT], *, workers: int, advance: Advance, name: str
) -> list[ResultT]:
    """Every job's result. `name` says what a job is, with its number: "rank 3"."""
    running = _Running(work, jobs, min(workers, len(jobs)), advance, name)
    try:
        running.finish()
    finally:
        running.stop()
    return [running.results[number] for number in range(len(jobs))]


class _Running(Generic[JobT, ResultT]):
    """Workers, each with a pipe of its own: one that is killed holds no lock that others need."""

    def __init__(
        self, work: Work[JobT, ResultT], jobs: Sequence[JobT], workers: int, advance: Advance, name: str
    ) -> None:
        self.results: dict[int, ResultT] = {}
        self._jobs, self._advance, self._name = jobs, advance, name
        self._open = deque(range(len(jobs)))
        self._workers = [_start(work, f"{name}-worker-{number}") for number in range(workers)]

    def finish(self) -> None:
        """Hand out jobs and listen until all are done."""
        for worker in self._workers:
            self._give(worker)
        while len(self.results) < len(self._jobs):
            busy = {worker.pipe: worker for worker in self._workers if worker.job is not None}
            for pipe in wait(list(busy)):
                self._hear(busy[pipe])  # type: ignore[index]

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
        with suppress(BrokenPipeError):  # the reader finds it dead, with its job
            worker.pipe.send(self._jobs[worker.job])

    def _hear(self, worker: _Worker) -> None:
        assert worker.job is not None, "only busy workers are listened to"
        match self._message(worker):
            case _News(amount):
                self._advance(worker.job, amount)
            case _Done(result):
                self.results[worker.job] = result
                self._give(worker)
            case _Failed(error):
                raise error

    def _message(self, worker: _Worker) -> object:
        try:
            return worker.pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            worker.process.join()
            raise WorkerError(
                f"{self._name} {worker.job}: its worker died ({_cause(worker.process.exitcode)}); nothing of "
                "it was published; run again, with fewer --workers if memory ran out"
            ) from error


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return signal.Signals(-exitcode).name
    return f"exit code {exitcode}"


def _start(work: Work[Any, Any], name: str) -> _Worker:
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


def _serve(work: Work[Any, Any], pipe: Connection) -> None:
    """The life of a worker."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(_outcome(work, job, pipe))


def _outcome(work: Work[Any, Any], job: Any, pipe: Connection) -> _Done | _Failed:
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
