"""How fast one worker converts a Llama-shaped checkpoint, and in how much memory, beside a plain copy.

Source and copy are read from the page cache, both sides sync what they write, and every measurement is a
process of its own. Rounds alternate copy and conversion; the table gives medians.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from builders.convert import ConvertPlan, convert_rank
from builders.families import from_transformers
from builders.mapping import Mapping
from builders.shard import targets
from builders.sources.pieces import locate
from builders.sources.stored import Stored, index_file
from builders.tensor_file import write_tensors

MB = 1e6
CHUNK_BYTES = 16 * 2**20
ALLOWANCE_BYTES = 300 * MB
LAYER_PARAMETERS = 218_112_000
CONFIG = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one process did."""

    num_bytes: int
    seconds: float
    peak_bytes: int
    """Above what the process held before it began."""


def main() -> None:
    """Make, measure in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4)
    parser.add_argument("--tp_size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where to work; removed afterwards")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        work = Path(name)
        plan = make(work / "source", options.gigabytes, options.tp_size)
        files = sorted((work / "source").iterdir())
        rounds = [one_round(work, files, plan) for _ in range(options.rounds)]
    report(plan, rounds)


def make(folder: Path, gigabytes: float, tp_size: int) -> ConvertPlan:
    """A checkpoint in shards of two layers, written without holding it."""
    folder.mkdir()
    layers = max(2, round(gigabytes * 1e9 / 2 / LAYER_PARAMETERS))
    _family, spec = from_transformers({**CONFIG, "num_hidden_layers": layers})
    noise = torch.randn(CHUNK_BYTES // 2).bfloat16()
    for start in range(0, layers, 2):
        names = (
            dict(layer_shapes(start) | layer_shapes(start + 1)) if start + 1 < layers else layer_shapes(start)
        )
        names = names | (outer_shapes() if start == 0 else {})
        write_tensors(folder / f"model-{start:03d}.safetensors", names, torch.bfloat16, repeat(noise, names))
    index: dict[str, tuple[Stored, ...]] = {}
    for file in sorted(folder.iterdir()):
        index |= {key: (stored,) for key, stored in index_file(file).items()}
    family, spec = from_transformers({**CONFIG, "num_hidden_layers": layers})
    located = locate(family, spec, index)
    return ConvertPlan(spec=spec, mapping=Mapping(tp_size=tp_size), dtype=torch.bfloat16, located=located)


def layer_shapes(layer: int) -> dict[str, tuple[int, ...]]:
    """One layer's tensors."""
    hidden, width = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    assert isinstance(hidden, int) and isinstance(width, int), "sizes are whole"
    shapes: dict[str, tuple[int, ...]] = {f"self_attn.{n}_proj.weight": (hidden, hidden) for n in "qo"}
    shapes |= {f"self_attn.{n}_proj.weight": (hidden // 4, hidden) for n in "kv"}
    shapes |= {"mlp.gate_proj.weight": (width, hidden), "mlp.up_proj.weight": (width, hidden)}
    shapes |= {"mlp.down_proj.weight": (hidden, width)}
    shapes |= {f"{n}_layernorm.weight": (hidden,) for n in ("input", "post_attention")}
    return {f"model.layers.{layer}.{name}": shape for name, shape in shapes.items()}


def outer_shapes() -> dict[str, tuple[int, ...]]:
    """What is not in a layer."""
    vocab, hidden = 32000, 4096
    return {
        "model.embed_tokens.weight": (vocab, hidden),
        "lm_head.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }


def repeat(noise: Tensor, shapes: dict[str, tuple[int, ...]]) -> Iterator[Tensor]:
    """Enough noise for tensors of these shapes."""
    left = sum(torch.Size(shape).numel() for shape in shapes.values())
    while left:
        part = noise[: min(left, len(noise))]
        yield part
        left -= len(part)


def one_round(work: Path, files: list[Path], plan: ConvertPlan) -> tuple[Measured, list[Measured]]:
    """A copy of everything, then every rank by a worker of its own, one after another."""
    for file in files:
        read_through(file)
    copied = in_process(copy_files, files, fresh(work / "copy"))
    target = fresh(work / "out")
    ranks = [in_process(convert, plan, rank, target) for rank in range(plan.mapping.world_size)]
    return copied, ranks


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def read_through(file: Path) -> None:
    """Into the page cache."""
    with file.open("rb", buffering=0) as opened:
        while opened.read(CHUNK_BYTES):
            pass


def in_process(work: Callable[..., int], *args: Any) -> Measured:
    """Run in a fresh process, so that its peak is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measured, (work, *args))


def measured(work: Callable[..., int], *args: Any) -> Measured:
    before = peak()
    began = time.perf_counter()
    num_bytes = work(*args)
    seconds = time.perf_counter() - began
    return Measured(num_bytes=num_bytes, seconds=seconds, peak_bytes=peak() - before)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def copy_files(files: list[Path], target: Path) -> int:
    """What any program that reads and writes these bytes must do."""
    total = 0
    for file in files:
        with file.open("rb", buffering=0) as source, (target / file.name).open("xb", buffering=0) as out:
            while chunk := source.read(CHUNK_BYTES):
                total += out.write(chunk)
            os.fsync(out.fileno())
    return total


def convert(plan: ConvertPlan, rank: int, target: Path) -> int:
    """One rank, synced like the copy."""
    written = convert_rank(plan, rank, target)
    with (target / written.name).open("rb") as opened:
        os.fsync(opened.fileno())
    return written.num_bytes


def report(plan: ConvertPlan, rounds: list[tuple[Measured, list[Measured]]]) -> None:
    copies = [speed([copied]) for copied, _ranks in rounds]
    converts = [speed(ranks) for _copied, ranks in rounds]
    share = statistics.median(mine / theirs for mine, theirs in zip(converts, copies, strict=True))
    peaks = [rank.peak_bytes / MB for _copied, ranks in rounds for rank in ranks]
    size = rounds[0][0].num_bytes / 1e9
    print(f"{size:.2f} GB bfloat16 to tp {plan.mapping.tp_size}, medians of {len(rounds)} rounds")
    print(f"plain copy          {statistics.median(copies):6.0f} MB/s")
    print(f"convert, per worker {statistics.median(converts):6.0f} MB/s, {share:.0%} of the copy (goal 60%)")
    print(f"peak per worker     {max(peaks):6.0f} MB, limit {memory_limit(plan) / MB:.0f} MB")


def speed(runs: list[Measured]) -> float:
    """MB/s over runs that followed each other."""
    return sum(run.num_bytes for run in runs) / sum(run.seconds for run in runs) / MB


def memory_limit(plan: ConvertPlan) -> float:
    """The largest source tensor, the rank's largest tensor, and 300 MB."""
    size = plan.dtype.itemsize
    source = max(size * torch.Size(found.param.shape).numel() for found in plan.located.values())
    target = max(size * torch.Size(made.shape).numel() for made in targets(plan.spec, plan.mapping, 0))
    return source + target + ALLOWANCE_BYTES


if __name__ == "__main__":
    main()
