"""Members of a group as real processes, for any kind of communicator."""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from actors.communicators.peers import Peers
from actors.communicators.rendezvous import Rendezvous, host_store, join_store
from builders.errors import PeerError

HOST = "127.0.0.1"
Act = Callable[[Peers, int], Any]
"""What a member does, given its number; a function of a module."""
Open = Callable[[Rendezvous], Peers]


def act_together(
    opener: Open, act: Act, size: int = 2, *, timeout_s: float = 60, ranks: tuple[int, ...] = ()
) -> list[Any]:
    """What every member's `act` gives: its result, its `PeerError` as text, or "died"."""
    store = host_store(HOST, timeout_s)
    context = get_context("spawn")
    pipes, processes = [], []
    for index in range(size):
        ours, theirs = context.Pipe(duplex=False)
        place = {"index": index, "ranks": ranks or tuple(range(size)), "timeout_s": timeout_s}
        processes.append(
            context.Process(target=_member, args=(opener, act, store.port, place, theirs), daemon=True)
        )
        pipes.append(ours)
        processes[-1].start()
        theirs.close()
    try:
        return [_heard(pipe) for pipe in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _heard(pipe: Connection) -> Any:
    assert wait([pipe], timeout=120), "a member neither answers nor dies"
    try:
        return pipe.recv()
    except EOFError:
        return "died"


def _member(opener: Open, act: Act, port: int, place: dict[str, Any], pipe: Connection) -> None:
    torch.set_num_threads(1)
    store = join_store(HOST, port, place["timeout_s"])
    try:
        peers = opener(Rendezvous(store=store, name="test", **place))
        pipe.send(act(peers, place["index"]))
        peers.finish()
    except PeerError as error:
        pipe.send(str(error))
    time.sleep(120)  # others may still need this process; the test ends it
