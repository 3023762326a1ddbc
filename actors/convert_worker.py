"""The processes that convert: every rank by itself, as many at once as there are workers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from threading import Thread

import torch

from builders.convert import ConvertPlan, convert_rank
from builders.errors import WorkerError
from builders.tensor_file import Written

Advance = Callable[[int, int], None]
"""Hears of a rank and the bytes it wrote."""


def run_ranks(
    plan: ConvertPlan,
    folder: Path,
    *,
    workers: int,
    advance: Advance,
    only: Sequence[int] | None = None,
) -> list[Written]:
    """Write every rank's file, or those of some, into the folder; the first error ends all workers."""
    ranks = range(plan.mapping.world_size) if only is None else only
    if min(workers, len(ranks)) <= 1:
        return [convert_rank(plan, rank, folder, partial(advance, rank)) for rank in ranks]
    with _progress(advance) as queue, _pool(min(workers, len(ranks)), queue) as pool:
        jobs = [pool.submit(_convert_in_worker, plan, rank, folder) for rank in ranks]
        try:
            return [job.result() for job in jobs]
        except BrokenProcessPool as error:
            unfinished = [
                rank for rank, job in zip(ranks, jobs, strict=True) if not job.done() or job.exception()
            ]
            raise WorkerError(
                f"a convert worker died while ranks {unfinished} were open (killed, or out of memory?); "
                "nothing was published; run again with fewer --workers"
            ) from error


@contextmanager
def _pool(workers: int, queue: SimpleQueue[tuple[int, int] | None]) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes: a fork would copy this one's threads' locks."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(queue,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _progress(advance: Advance) -> Iterator[SimpleQueue[tuple[int, int] | None]]:
    """A queue whose (rank, bytes) are passed on by a thread."""
    queue: SimpleQueue[tuple[int, int] | None] = multiprocessing.get_context("spawn").SimpleQueue()

    def listen() -> None:
        while (news := queue.get()) is not None:
            advance(*news)

    thread = Thread(target=listen, name="convert-progress")
    thread.start()
    try:
        yield queue
    finally:
        queue.put(None)
        thread.join()


class _Worker:
    """What a worker process was started with."""

    queue: SimpleQueue[tuple[int, int] | None]


def _start(queue: SimpleQueue[tuple[int, int] | None]) -> None:
    _Worker.queue = queue
    torch.set_num_threads(1)  # the ranks are the parallelism


def _convert_in_worker(plan: ConvertPlan, rank: int, folder: Path) -> Written:
    return convert_rank(plan, rank, folder, lambda size: _Worker.queue.put((rank, size)))
