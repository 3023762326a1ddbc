"""Ranks of a node without devices: the halves of their calls one after another, or processes that wait."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from tempfile import NamedTemporaryFile

import torch
from torch import Tensor

from builders.kernels.aot import compile_source, find
from builders.kernels.call import Call, Source
from builders.kernels.reduce import REDUCE_CONFIG, PeerBuffers, all_reduce, inbox_shape
from tests.builders.kernels.workers import pool


def buffers_of(ranks: int, blocks: int, *, before: int = 0) -> list[PeerBuffers]:
    """As a communicator makes them; `before` is how many calls every block has taken part in."""
    inboxes = [torch.zeros(inbox_shape(ranks, blocks), dtype=torch.int64) for _ in range(ranks)]
    return [
        PeerBuffers(
            rank=rank,
            inbox=inbox,
            others=(*inboxes[:rank], *inboxes[rank + 1 :]),
            epochs=torch.full((blocks,), before, dtype=torch.int32),
        )
        for rank, inbox in enumerate(inboxes)
    ]


def push(x: Tensor, buffers: PeerBuffers) -> list[Call]:
    return all_reduce(x, buffers, REDUCE_CONFIG, out=torch.empty_like(x), take=False)


def take(x: Tensor, buffers: PeerBuffers, out: Tensor, residual: Tensor | None = None) -> list[Call]:
    return all_reduce(x, buffers, REDUCE_CONFIG, out=out, residual=residual, push=False)


def summed(parts: Sequence[Tensor], residual: Tensor | None = None) -> Tensor:
    """In float32, in the order of ranks, rounded once."""
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part.float()
    return (total if residual is None else total + residual.float()).to(parts[0].dtype)


def random_parts(ranks: int, words: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
    """A call's tensors, of words of 4 bytes, each where a device's kernels take it."""
    generator = torch.Generator().manual_seed(seed)
    shape = (ranks, words * 4 // dtype.itemsize)
    return [part.clone() for part in torch.randn(shape, generator=generator).to(dtype)]


def together(calls: Sequence[Sequence[Tensor]], blocks: int) -> list[list[Tensor]]:
    """What every rank gets, each a process; `calls` holds the ranks' tensors."""
    ranks = len(calls[0])
    buffers = buffers_of(ranks, blocks)
    for mine in buffers:
        mine.inbox.share_memory_()
    workers = [pool(interpreted=True) for _ in range(ranks)]
    try:
        futures = [
            worker.submit(_all, mine, [call[rank].clone() for call in calls])
            for rank, (worker, mine) in enumerate(zip(workers, buffers, strict=True))
        ]
        return [future.result() for future in futures]
    finally:
        for worker in workers:
            _end(worker)


def _all(buffers: PeerBuffers, xs: Sequence[Tensor]) -> list[Tensor]:
    outs = [torch.empty_like(x) for x in xs]
    for x, out in zip(xs, outs, strict=True):
        (call,) = all_reduce(x, buffers, REDUCE_CONFIG, out=out)
        find(call.kernel)[call.grid](*call.args, **dict(call.constants))
    return outs


def _end(worker: ProcessPoolExecutor) -> None:
    """Also if it waits for another that has failed."""
    for process in list(worker._processes.values()):
        process.kill()
    worker.shutdown()


def wide_accesses(source: Source, capability: int) -> set[str]:
    """The instructions of its machine code that load or store 8 bytes or more of global memory."""
    import triton

    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compile_source(source, capability).code)
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, "-c", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"\b(?:LDG?|STG?)\.E\.(?:64|128)[A-Z0-9.]*", text))
