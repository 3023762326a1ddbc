"""Work in a process of its own, whose results come one by one: what a failure leaves behind ends with it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

ValueT = TypeVar("ValueT")

GRACE_S = 10.0
"""What a process that has no more time may take to end itself, and those that it has started."""


class FailedAlone(RuntimeError):
    """The process ended before its work did. Why, it has said on standard error; or the time was up."""


def alone(
    work: Callable[..., Iterable[ValueT]], *args: Any, deadline: float | None = None
) -> Iterator[ValueT]:
    """Each result when it is there, until a time of `time.monotonic`. The process may have children."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, work, args))
    process.start()
    sender.close()
    with receiver:
        yield from _received(receiver, process, deadline)
    process.join()
    if process.exitcode:
        raise FailedAlone(f"{work.__name__}: exit code {process.exitcode}")


def _send(sender: Connection, work: Callable[..., Iterable[object]], args: tuple[Any, ...]) -> None:
    with sender:
        for value in work(*args):
            sender.send(value)


def _received(receiver: Connection, process: SpawnProcess, deadline: float | None) -> Iterator[Any]:
    while True:
        if not receiver.poll(None if deadline is None else max(0.0, deadline - time.monotonic())):
            _end(process)
            raise FailedAlone("the time is up")
        try:
            yield receiver.recv()
        except EOFError:
            return


def _end(process: SpawnProcess) -> None:
    process.terminate()
    process.join(GRACE_S)
    process.kill()
    process.join()
