"""Work in a process of its own, whose results come one by one: what a failure leaves behind ends with it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import ParamSpec, TypeVar

ParamT = ParamSpec("ParamT")
ValueT = TypeVar("ValueT")


class FailedAlone(RuntimeError):
    """The process ended before its work did; it has said why on standard error."""


def alone(
    work: Callable[ParamT, Iterable[ValueT]], *args: ParamT.args, **options: ParamT.kwargs
) -> Iterator[ValueT]:
    """Each result when it is there. The process may have children of its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, work, args, options))
    process.start()
    sender.close()
    with receiver:
        yield from _received(receiver)
    process.join()
    if process.exitcode:
        raise FailedAlone(f"{work.__name__}: exit code {process.exitcode}")


def _send(
    sender: Connection,
    work: Callable[..., Iterable[object]],
    args: tuple[object, ...],
    options: dict[str, object],
) -> None:
    with sender:
        for value in work(*args, **options):
            sender.send(value)


def _received(receiver: Connection) -> Iterator[ValueT]:
    while True:
        try:
            yield receiver.recv()
        except EOFError:
            return
