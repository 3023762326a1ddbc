"""Worker processes that say how far they are."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from threading import Thread

Advance = Callable[[int, int], None]
"""Hears of a part of the work, by number, and how much more of it is done."""


@contextmanager
def worker_processes(
    workers: int, advance: Advance, start: Callable[[], object]
) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes: a fork would copy this one's threads' locks. What they `tell` is passed on."""
    with _listening(advance) as pipe:
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(pipe, start))
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _listening(advance: Advance) -> Iterator[Connection]:
    """A pipe that a thread empties until no process is left to write to it.

    A message is small enough to be written at once, so nobody takes a lock that could die with its holder.
    """
    reader, writer = multiprocessing.Pipe(duplex=False)

    def listen() -> None:
        try:
            while True:
                advance(*reader.recv())
        except EOFError:
            reader.close()

    thread = Thread(target=listen, name="progress")
    thread.start()
    try:
        yield writer
    finally:
        writer.close()
        thread.join()


class _Worker:
    """What a worker process was started with."""

    pipe: Connection


def _start(pipe: Connection, start: Callable[[], object]) -> None:
    _Worker.pipe = pipe
    start()


def tell(part: int, amount: int) -> None:
    """Called in a worker: this much more of a part is done."""
    _Worker.pipe.send((part, amount))
