"""Ranks without Ray: plain processes that obey through pipes."""

from __future__ import annotations

import time
from collections import deque
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from actors.communicators.links import Kind
from actors.communicators.rendezvous import host_store
from actors.messages import Order, StepResult
from actors.pending import Pending
from actors.rank_worker import Meeting, RankSetup, RankWorker
from builders.engine_manifest import read_engine

HERE = "127.0.0.1"
PATIENCE_S = 200


def run_rank(setup: RankSetup, on_gpu: bool, pipe: Connection) -> None:
    """Begins what it is told to, and answers what is done."""
    torch.set_num_threads(1)
    device = f"cuda:{setup.rank}" if on_gpu else None
    if device:
        torch.cuda.set_device(device)
    worker = RankWorker(setup, host=HERE, device=device)
    pipe.send(worker.answers)
    under_way: deque[Pending] = deque()
    while True:
        if not under_way or pipe.poll():
            if (order := pipe.recv()) is None:
                break
            under_way.append(worker.begin(order))
        elif worker.is_done(under_way[0]):
            if (result := worker.finish(under_way.popleft())) is not None:
                pipe.send(result)
        else:
            time.sleep(0)
    worker.close()


class PipedRanks:
    """See `actors.ranks.Ranks`."""

    def __init__(self, folder: Path, kind: Kind, *, num_blocks: int, ends: tuple[int, ...] = ()) -> None:
        self._store, world = host_store(HERE, 120), read_engine(folder).checkpoint.mapping.world_size
        meeting = Meeting(kind=kind, store=(HERE, self._store.port), wait_s=60, start_s=120)
        setups = [
            RankSetup(engine_dir=folder, rank=rank, num_blocks=num_blocks, ends=ends, meeting=meeting)
            for rank in range(world)
        ]
        self._pipes = [_started(setup, on_gpu=kind != "gloo") for setup in setups]
        (self._answering,) = [pipe for pipe in self._pipes if _heard(pipe)]

    def submit(self, order: Order) -> None:
        for pipe in self._pipes:
            pipe.send(order)

    def collect(self) -> StepResult:
        found = _heard(self._answering)
        assert isinstance(found, StepResult)
        return found

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)


def _started(setup: RankSetup, *, on_gpu: bool) -> Connection:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=run_rank, args=(setup, on_gpu, theirs), daemon=True).start()
    theirs.close()
    return ours


def _heard(pipe: Connection) -> object:
    assert wait([pipe], timeout=PATIENCE_S), "a rank neither answers nor dies"
    return pipe.recv()
