"""What each kernel of a layer adds to a step of an engine, beside what its weights and cache take to read.

Batches, prompts, and both in one step, as far as the engine's limits have room for them.

    python -m benchmarks.step_kernels ENGINE

Times are between the ends of kernels that follow each other, medians over layers: a kernel that starts while
the one before ends is not counted twice. ENGINE is built for this device, with weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.build_cuda import BATCHES, NUM_BLOCKS, decoding_step, mixed_step, prompt_step
from builders.cuda.engine import CudaEngine
from builders.engine_folder import load_engine
from builders.engine_manifest import read_engine
from builders.limits import Limits
from builders.ops import Step

ATTENTION = ("tiled", "decode")
"""Every layer has one of the first that a step has."""
PROMPTS = (512, 8192)
"""Tokens of a step that are prompts."""
MIXED = (240, 640, 4096)
"""Sequences that decode, tokens of each in the cache, and tokens of prompts beside them."""
KINDS = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One kernel or copy, in microseconds."""

    name: str
    end: float
    own: float
    """From its start, while the one before may still run."""
    grid: tuple[int, ...]


def main() -> None:
    """Every step that there is room for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("engine", type=Path)
    engine = parser.parse_args().engine
    rank = load_engine(engine, 0, num_blocks=NUM_BLOCKS)
    assert isinstance(rank, CudaEngine), "built for a CUDA device"
    rank.prepare()
    for what, ids, step in steps_within(read_engine(engine).limits):
        show(what, recorded(rank, ids, step))


def steps_within(limits: Limits) -> Iterator[tuple[str, Tensor, Step]]:
    """Batches, prompts, and both at once."""
    batch, context, tokens = MIXED
    every = [
        *((f"decode {some}, context {each}", *decoding_step(some, each)) for some, each in BATCHES),
        *((f"prompts, {some} tokens", *prompt_step(some)) for some in PROMPTS),
        (f"decode {batch}, context {context}, prompts, {tokens} tokens", *mixed_step(*MIXED)),
    ]
    return ((what, ids, step) for what, ids, step in every if fits(step, limits))


def fits(step: Step, limits: Limits) -> bool:
    """Whether the engine takes so many tokens and sequences, so long."""
    return (
        len(step.positions) <= limits.max_num_tokens
        and len(step.lengths) <= limits.max_sequences
        and int(step.lengths.max()) <= limits.max_seq_len
    )


def recorded(rank: CudaEngine, ids: Any, step: Any) -> list[Ran]:
    """What ran in one step, in the order in which it ended."""
    for _ in range(3):
        rank.forward(ids, step)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        rank.forward(ids, step)
        torch.cuda.synchronize()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        found.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    return sorted(_ran(events), key=lambda ran: ran.end)


def _ran(events: list[dict[str, Any]]) -> Iterator[Ran]:
    for event in events:
        if event.get("cat") in KINDS:
            end, grid = event["ts"] + event["dur"], tuple(event["args"].get("grid") or ())
            yield Ran(name=event["name"], end=end, own=event["dur"], grid=grid)


def show(what: str, ran: list[Ran]) -> None:
    """A line for every place of a layer."""
    named = ([at for at, one in enumerate(ran) if one.name.startswith(name)] for name in ATTENTION)
    places = next(filter(None, named))
    size = places[3] - places[2]
    print(f"\n{what}: {len(ran)} kernels, {size} a layer, {ran[-1].end - ran[0].end + ran[0].own:.0f} us\n")
    print("| kernel | programs | adds | own time |\n| --- | --- | --- | --- |")
    for place in range(size):
        layers = [first + 1 + place for first in places[:-1]]
        adds = statistics.median(ran[index].end - ran[index - 1].end for index in layers)
        own = statistics.median(ran[index].own for index in layers)
        one = ran[layers[0]]
        print(f"| {one.name[:50]} | {'x'.join(map(str, one.grid))} | {adds:.1f} us | {own:.1f} us |")


if __name__ == "__main__":
    main()
