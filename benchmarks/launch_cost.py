"""What launching steps of Llama 3 8B's shape costs the CPU; takes no GPU.

    python -m benchmarks.launch_cost [--rows 16 48 300] [--layers 32]

All is done as on a device, but the driver's own function does nothing, nor does cuBLAS: what is left is
Python's part. Steps are prompts of so many tokens, which no CUDA graph holds: `described` launches every
layer as if it were the first, `repeated` as engines do. Beside them, a bare call of the driver. Best of 20.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.machine import described
from benchmarks.runtime_cases import SHAPES
from builders.constants import rank_constants
from builders.cuda.engine import CudaEngine
from builders.cuda.executor import Context, Executor
from builders.cuda.launch import Launch
from builders.cuda.site import sites_of
from builders.cuda.table import KERNELS
from builders.cuda.target import Target
from builders.cuda.unit import candidates, new_scratch
from builders.decoder import empty_decoder
from builders.engine import Piece, Pieces, TorchEngine
from builders.export import Graphs, export_rank
from builders.families import from_transformers
from builders.fuse import fused, narrow_logits
from builders.kernels.call import Call, Config, Source
from builders.kernels.driver import Compiled, Device, Kernels, LoadedKernel
from builders.kernels.linear import ScratchSize
from builders.limits import Limits
from builders.mapping import Mapping
from builders.ops import LayerCache, Step
from builders.program import Program
from builders.spec import ModelSpec

LIMITS = Limits(max_batch_size=64, max_input_len=2048, max_seq_len=4096, max_num_tokens=2048)
BLOCKS = LIMITS.max_seq_len // LIMITS.tokens_per_block
ROUNDS = 20


class Idle(Device):
    """A driver that does nothing at all, in C as the real one."""

    def __init__(self) -> None:
        self.driver = self
        self.cuLaunchKernelEx = ctypes.CDLL("libm.so.6").fegetround  # gives 0, whatever it is given

    def function(self, compiled: Compiled) -> ctypes.c_void_p:
        return ctypes.c_void_p(1)

    def stream(self) -> int:
        return 0


class Every(Kernels):
    """Has whatever is launched."""

    def __init__(self) -> None:
        super().__init__((), Idle)
        self.launches = 0

    def run(self, calls: Iterable[Call]) -> None:
        calls = list(calls)
        self.launches += len(calls)
        super().run(calls)

    def loaded(self, source: Source) -> LoadedKernel:
        if source not in self._compiled:
            self._compiled[source] = Compiled(
                source=source, capability=90, code=b"", name="k", shared_bytes=0, scratch_bytes=0
            )
        return super().loaded(source)


def main() -> None:
    """A line for every number of rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 48, 300])
    parser.add_argument("--layers", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("\n".join(described("benchmarks.launch_cost")))
    _, shape = from_transformers(dict(SHAPES["llama-8b"].config))
    spec = replace(shape, num_layers=options.layers)
    print(f"\na bare call of the driver: {1e6 * bare():.2f} us\n")
    print("| rows | launches | step, described | us a launch | step, repeated | us a launch |")
    print("| --- | --- | --- | --- | --- | --- |")
    for rows in options.rows:
        kernels = Every()
        engine = engine_of(spec, kernels)
        print(line(rows, engine, kernels), flush=True)


def line(rows: int, engine: CudaEngine, kernels: Every) -> str:
    """Both ways."""
    step, ids = prompt(rows), torch.zeros(rows, dtype=torch.int64)
    context, repeater = engine._context, engine._context.repeater
    with patch.object(torch, "mm", nothing), patch.object(torch, "addmm", nothing), torch.no_grad():
        repeated = best(lambda: engine.forward(ids, step))
        context.repeater = None
        first = kernels.launches
        engine.forward(ids, step)
        launches = kernels.launches - first
        alone = best(lambda: engine.forward(ids, step))
        context.repeater = repeater
    cells = [f"{1e3 * s:.2f} ms | {1e6 * s / launches:.1f}" for s in (alone, repeated)]
    return f"| {rows} | {launches} | {' | '.join(cells)} |"


def nothing(*_args: Tensor, out: Tensor) -> Tensor:
    """In place of a product."""
    return out


def best(work: Callable[[], object]) -> float:
    """Seconds."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def bare() -> float:
    """Seconds of a call of the driver with what it is always given."""
    given = ctypes.byref(ctypes.c_uint64()), ctypes.c_void_p(1), (ctypes.c_void_p * 9)(), None
    launch = Idle().cuLaunchKernelEx
    return best(lambda: [launch(*given) for _ in range(1000)]) / 1000


def prompt(rows: int) -> Step:
    """One, whose last token is wanted."""
    return Step(
        positions=torch.arange(rows),
        sequences=torch.zeros(rows, dtype=torch.int64),
        lengths=torch.tensor([rows]),
        block_table=torch.arange(BLOCKS)[None],
        wanted=torch.tensor([rows - 1]),
    )


def engine_of(spec: ModelSpec, kernels: Every) -> CudaEngine:
    """A rank with the likeliest kernels; nobody ever writes to most of its memory, so it takes none."""
    graphs = export_rank(spec, Mapping(), 0, torch.bfloat16, LIMITS.tokens_per_block)
    found = empty_decoder(spec, Mapping(), 0).to(torch.bfloat16).state_dict()
    tensors = {name: torch.empty(x.shape, dtype=x.dtype) for name, x in found.items()}
    size = (BLOCKS + 1, LIMITS.tokens_per_block, spec.num_kv_heads, spec.head_dim)
    caches = [
        LayerCache(k=torch.empty(size).bfloat16(), v=torch.empty(size).bfloat16())
        for _ in range(spec.num_layers)
    ]
    launch = Launch(scratch=new_scratch(ScratchSize(partial=1 << 20, counters=1 << 12), "cpu"))
    context = Context(runner=kernels.run, launch=launch, repeater=kernels.repeat)
    inner = TorchEngine(pieces(graphs, context), 0, {**tensors, **rank_constants(spec, Mapping(), 0)}, caches)
    ids = torch.zeros(LIMITS.max_sequences, dtype=torch.int64)
    return CudaEngine(inner, context, LIMITS, ids, trash=BLOCKS)


def pieces(graphs: Graphs, context: Context) -> Pieces:
    """With kernels."""

    def piece(program: Program) -> Piece:
        ready = narrow_logits(fused(program))
        return Piece(program=ready, runner=Executor(ready, choices(ready), context))

    assert graphs.embed and graphs.rotary and graphs.head, "a whole model"
    return Pieces(
        embed=piece(graphs.embed),
        rotary=piece(graphs.rotary),
        blocks=tuple(map(piece, graphs.blocks)),
        layers=graphs.layers,
        head=piece(graphs.head),
    )


def choices(program: Program) -> dict[str, Config]:
    """The likeliest candidate of every site, for every number of rows."""
    target = Target(capability=90, device=None)
    return {
        site.key(rows): candidates(site, rows, LIMITS, target)[0]
        for site in sites_of(program, KERNELS).values()
        for rows in KERNELS[site.op].buckets(LIMITS)
    }


if __name__ == "__main__":
    main()
