"""Sums over the ranks of a node: our kernel beside symmetric memory's and NCCL's, inside CUDA graphs.

    python -m benchmarks.all_reduce [--ranks 2] [--calls 200] [--replays 20]

Every row is one size in bfloat16. "with residual" adds a tensor on the way, which the others do by a kernel
of their own. The first row is one block of one warp: what a call costs that carries next to nothing. Results
are compared with a sum in float32 before anything is timed.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.queues import Queue

import torch
from torch import Tensor

from actors.communicators.nccl import Nccl
from actors.communicators.rendezvous import Rendezvous, host_store, join_store
from actors.communicators.symmetric import ENVIRONMENT, SymmetricMemory
from benchmarks.machine import described
from builders.kernels.aot import compile_source
from builders.kernels.driver import Kernels
from builders.kernels.reduce import REDUCE_CONFIG, PeerBuffers, all_reduce, example_buffers

HOST = "127.0.0.1"
TIMEOUT_S = 120
WIDTH = 4096
SHAPES = ((1, 256), (1, WIDTH), (8, WIDTH), (64, WIDTH))

NAMES = ("ours", "ours with residual", "symmetric memory", "symmetric memory, add", "NCCL", "NCCL, add")

Work = Callable[[Tensor], Tensor]
"""A sum, of a tensor that it does not change."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is measured."""

    ranks: int
    calls: int
    """In a graph."""
    replays: int


class Ours:
    """The kernel, compiled for this device."""

    def __init__(self, buffers: PeerBuffers, *, adds: bool) -> None:
        major, minor = torch.cuda.get_device_capability()
        capability = 10 * major + minor
        self._config = replace(REDUCE_CONFIG, overlap=capability >= 90)
        self._buffers, self._adds = buffers, adds
        x = torch.empty(1, WIDTH, dtype=torch.bfloat16, device="meta")
        (call,) = all_reduce(
            x, example_buffers(buffers.ranks), self._config, out=x, residual=x if adds else None
        )
        self._kernels = Kernels([compile_source(call.source, capability)])

    def __call__(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        residual = x if self._adds else None
        self._kernels.run(all_reduce(x, self._buffers, self._config, out=out, residual=residual))
        return out


def member(index: int, port: int, asked: Asked, rows: Queue[list[float]]) -> None:
    """One rank; the first says what it has measured."""
    torch.cuda.set_device(index)
    place = Rendezvous(
        store=join_store(HOST, port, TIMEOUT_S),
        name="benchmark",
        ranks=tuple(range(asked.ranks)),
        index=index,
        timeout_s=TIMEOUT_S,
    )
    nccl = Nccl(place)
    symmetric = SymmetricMemory(place, nccl)
    works = ways(nccl, symmetric)
    for shape in SHAPES:
        for name, work in works.items():
            check(name, work, shape, asked, index)
        found = [measured(work, shape, asked, symmetric) for work in works.values()]
        if index == 0:
            rows.put(found)
    symmetric.finish()


def ways(nccl: Nccl, symmetric: SymmetricMemory) -> Mapping[str, Work]:
    assert symmetric.buffers is not None, "as many ranks as a node has"
    works: tuple[Work, ...] = (
        Ours(symmetric.buffers, adds=False),
        Ours(symmetric.buffers, adds=True),
        symmetric.all_reduce,
        lambda x: symmetric.all_reduce(x) + x,
        nccl.all_reduce,
        lambda x: nccl.all_reduce(x) + x,
    )
    return dict(zip(NAMES, works, strict=True))


def check(name: str, work: Work, shape: tuple[int, int], asked: Asked, index: int) -> None:
    """Against a sum in float32 of random numbers, the same in every process."""
    generator = torch.Generator().manual_seed(1)
    parts = torch.randn(asked.ranks, *shape, generator=generator).to(torch.bfloat16).cuda()
    wanted = parts.float().sum(0)
    if "add" in name or "residual" in name:
        wanted += parts[index].float()
    torch.testing.assert_close(work(parts[index]).float(), wanted, rtol=2e-2, atol=2e-2)


def measured(work: Work, shape: tuple[int, int], asked: Asked, symmetric: SymmetricMemory) -> float:
    """Median microseconds of one call."""
    x = torch.randn(shape, device="cuda").to(torch.bfloat16)
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(side):
        work(x)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=side):
        for _ in range(asked.calls):
            work(x)
    graph.replay()
    symmetric.finish()
    times = [elapsed(graph) for _ in range(asked.replays)]
    return 1e3 * statistics.median(times) / asked.calls


def elapsed(graph: torch.cuda.CUDAGraph) -> float:
    """Milliseconds on the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--calls", type=int, default=200, help="in a graph")
    parser.add_argument("--replays", type=int, default=20)
    asked = Asked(**vars(parser.parse_args()))
    os.environ.update(ENVIRONMENT)
    print("\n".join(described("benchmarks.all_reduce")), flush=True)
    print(f"\nmicroseconds a call, {asked.ranks} ranks\n\n| KB | {' | '.join(NAMES)} |")
    print("| --- " * (len(NAMES) + 1) + "|", flush=True)
    measure(asked)


def measure(asked: Asked) -> None:
    """A process a rank, which end with this one."""
    context, store = get_context("spawn"), host_store(HOST, TIMEOUT_S)
    rows: Queue[list[float]] = context.Queue()
    processes = [
        context.Process(target=member, args=(index, store.port, asked, rows), daemon=True)
        for index in range(asked.ranks)
    ]
    for process in processes:
        process.start()
    try:
        for shape in SHAPES:
            found = rows.get(timeout=2 * TIMEOUT_S)
            kilobytes = 2 * shape[0] * shape[1] / 1024
            print(f"| {kilobytes:g} | {' | '.join(f'{time:.1f}' for time in found)} |", flush=True)
    finally:
        for process in processes:
            process.kill()


if __name__ == "__main__":
    main()
