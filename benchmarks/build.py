"""How long building and loading take: by depth and by ranks, which should both be flat, and beside reading.

Every build is a process of its own with an empty store and empty compiler caches. A build's limit is the
smallest model's, as one block serves every layer and one set of programs every rank of equal shape. A load's
limit is reading the same bytes, from the page cache both. Weights are mapped, so a load counts with what its
first step takes longer than its second.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import build_cuda

CONFIG = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
CHUNK_BYTES = 16 * 2**20
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is built for, and how a rank of it is loaded and run once."""

    config: Mapping[str, Any]
    """The model, without its depth."""
    options: Mapping[str, Any]
    """Of the build."""
    load_and_step: Callable[[Path], tuple[float, float, float]]
    """Seconds of loading rank 0 of an engine, and of its first and second step."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """One build: phases in seconds, and what came of it."""

    layers: int
    tp_size: int
    seconds: Mapping[str, float]
    num_built: int
    num_units: int
    program_bytes: int
    engine: Path

    @property
    def build_s(self) -> float:
        """From a checkpoint to programs: what could depend on depth or ranks."""
        return self.seconds["export"] + self.seconds["build"]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """One load beside reading."""

    num_bytes: int
    load_s: float
    first_s: float
    second_s: float
    read_s: float

    @property
    def share(self) -> float:
        """Of loading, and what it left to the first step, in readings."""
        return (self.load_s + max(0.0, self.first_s - self.second_s)) / self.read_s


def on_cpu(engine: Path) -> tuple[float, float, float]:
    """One prompt of four tokens, twice."""
    import torch

    from builders.engine_folder import load_engine
    from builders.ops import Step

    began = time.perf_counter()
    rank = load_engine(engine, 0, num_blocks=1)
    loaded = time.perf_counter()
    step = Step(
        positions=torch.arange(4),
        sequences=torch.zeros(4, dtype=torch.int64),
        lengths=torch.tensor([4]),
        block_table=torch.tensor([[0]]),
        wanted=torch.tensor([3]),
    )
    rank.forward(torch.tensor([1, 2, 3, 4]), step)
    first = time.perf_counter()
    rank.forward(torch.tensor([1, 2, 3, 4]), step)
    return loaded - began, first - loaded, time.perf_counter() - first


TARGETS: Mapping[str, Target] = {
    "cpu": Target(config=CONFIG, options={"target": "cpu", "dtype": "float32"}, load_and_step=on_cpu),
    "cuda": Target(
        config=build_cuda.CONFIG,
        options={
            "target": "cuda",
            "dtype": "bfloat16",
            "no_weights": True,
            "max_batch_size": max(batch for batch, _ in build_cuda.BATCHES),
        },
        load_and_step=build_cuda.load_and_step,
    ),
}


def main() -> None:
    """Build, load, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", choices=TARGETS, default="cpu")
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 8, 32])
    parser.add_argument("--tp_sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--no_compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=3, help="of loading; builds are done once")
    parser.add_argument("--folder", type=Path, default=None, help="where to work; removed afterwards")
    options = parser.parse_args()
    target = TARGETS[options.target]
    flags = {**target.options, "no_compile": options.no_compile}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        work = Path(name)
        deep = [build_alone(work, target, flags, layers, 1) for layers in options.depths]
        print_builds("depth", deep, lambda built: f"{built.layers} layers")
        wide = [build_alone(work, target, flags, min(options.depths), tp) for tp in options.tp_sizes]
        print_builds("ranks", wide, lambda built: f"tp {built.tp_size}")
        if options.target == "cuda":
            deep = [in_process(with_weights, deep[-1], flags)]
        print_loads(deep, [measure_load(built.engine, target, options.rounds) for built in deep])
        if options.target == "cuda":
            build_cuda.print_steps(in_process(build_cuda.measure_steps, deep[-1].engine))


def build_alone(work: Path, target: Target, flags: Mapping[str, Any], layers: int, tp_size: int) -> Built:
    """In a fresh process and folder, so that nothing is found that another build left."""
    folder = Path(tempfile.mkdtemp(dir=work))
    (folder / "config.json").write_text(json.dumps({**target.config, "num_hidden_layers": layers}))
    return in_process(build_here, folder, dict(flags), layers, tp_size)


def build_here(folder: Path, flags: Mapping[str, Any], layers: int, tp_size: int) -> Built:
    """The build itself, without its neighbours' caches."""
    os.environ.update({name: str(folder / "caches" / name) for name in CACHES})
    from cluster.build import build
    from cluster.build_options import BuildOptions
    from cluster.progress import LineReporter

    options = BuildOptions(
        model_config=str(folder / "config.json"),
        output_dir=folder / "engine",
        tp_size=tp_size,
        **flags,
    )
    done = build(options, LineReporter(io.StringIO(), as_json=False))
    shutil.rmtree(folder / "caches", ignore_errors=True)
    return Built(
        layers=layers,
        tp_size=tp_size,
        seconds=done.seconds,
        num_built=done.num_built,
        num_units=done.num_units,
        program_bytes=done.program_bytes,
        engine=folder / "engine",
    )


def with_weights(built: Built, flags: Mapping[str, Any]) -> Built:
    """The engine again from a checkpoint of its shape: every program is found."""
    from benchmarks.random_weights import write_weights
    from cluster.build import build
    from cluster.build_options import BuildOptions
    from cluster.progress import LineReporter

    checkpoint = write_weights(built.engine, built.engine.parent / "checkpoint", "cuda")
    options = BuildOptions(
        checkpoint_dir=checkpoint,
        output_dir=built.engine.parent / "whole",
        target=flags["target"],
        max_batch_size=flags["max_batch_size"],
    )
    done = build(options, LineReporter(io.StringIO(), as_json=False))
    assert done.num_built == 0, f"{done.num_built} of {done.num_units} units were built again"
    return replace(built, engine=options.output_dir)


def in_process(work: Callable[..., Any], *args: Any) -> Any:
    """Run in a fresh process, which may have children of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def measure_load(engine: Path, target: Target, rounds: int) -> Loaded:
    """Medians; reading and loading take turns, and a first reading fills the page cache."""
    files = [engine / "rank0.safetensors", *sorted((engine / "programs").rglob("*.*"))]
    in_process(read_files, files)
    reads, runs = [], []
    for _ in range(rounds):
        reads.append(in_process(read_files, files))
        runs.append(in_process(target.load_and_step, engine))
    load_s, first_s, second_s = (statistics.median(seconds) for seconds in zip(*runs, strict=True))
    return Loaded(
        num_bytes=sum(file.stat().st_size for file in files),
        load_s=load_s,
        first_s=first_s,
        second_s=second_s,
        read_s=statistics.median(reads),
    )


def read_files(files: Sequence[Path]) -> float:
    """Seconds of reading everything once into memory that is used again."""
    buffer = bytearray(CHUNK_BYTES)
    began = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
    return time.perf_counter() - began


def print_builds(what: str, builds: Sequence[Built], label: Callable[[Built], str]) -> None:
    limit = builds[0].build_s
    print(f"\nbuild by {what}: flat is 1.00 of the first\n", flush=True)
    print("| engine | export | build | together | of the first | programs built | program bytes |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for built in builds:
        print(
            f"| {label(built)} | {built.seconds['export']:.1f} s | {built.seconds['build']:.1f} s "
            f"| {built.build_s:.1f} s | {built.build_s / limit:.2f} "
            f"| {built.num_built} of {built.num_units} | {built.program_bytes:,} |"
        )


def print_loads(builds: Sequence[Built], loads: Sequence[Loaded]) -> None:
    print("\nload of rank 0, beside reading the same bytes\n", flush=True)
    print("| engine | bytes | load | first step | second step | reading | load, in readings |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for built, load in zip(builds, loads, strict=True):
        print(
            f"| {built.layers} layers | {load.num_bytes:,} | {load.load_s:.2f} s | {load.first_s:.2f} s "
            f"| {load.second_s:.2f} s | {load.read_s:.2f} s | {load.share:.1f} |"
        )


if __name__ == "__main__":
    main()
