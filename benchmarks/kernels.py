"""The CUDA engine's kernels at the sizes of an 8B Llama: the best candidate beside PyTorch and the device.

    python -m benchmarks.kernels [--seconds 330] [--processes N] [--only PART ...]

Weights and caches are cycled through copies, so that they come from memory and not from the L2 cache; all
times are medians inside CUDA graphs. "limit" is the part of the device's read bandwidth, measured first. A
candidate that does not compile, fails or differs from PyTorch is counted and left out. Every part is a
process of its own, which is ended when the time is up.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch

from benchmarks.device import Device, opened
from benchmarks.kernels_attention import bench_decode, bench_prefill
from benchmarks.kernels_linear import LAYERS, bench_layer
from benchmarks.kernels_moe import bench_moe

PARTS: Mapping[str, Callable[[Device], None]] = {
    **{name: partial(bench_layer, name) for name in LAYERS},
    "decode": bench_decode,
    "prefill": bench_prefill,
    "moe": bench_moe,
}
"""Linear layers by their names, attention, and Mixtral's experts."""


def main() -> None:
    """Measure the device, then each part until the time is up."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=330, help="for all parts together")
    parser.add_argument("--processes", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    start = time.monotonic()
    device = opened(options.processes)
    for name in options.only:
        spent = time.monotonic() - start
        print(f"\n[{spent:.0f} s] {name}", flush=True)
        in_process(name, device, options.seconds - spent)
    print(f"\ndone in {time.monotonic() - start:.0f} s")


def in_process(name: str, device: Device, seconds: float) -> None:
    """Run a part for so long at most; a fault of the device ends with its process."""
    process = multiprocessing.get_context("spawn").Process(target=run_part, args=(name, device))
    process.start()
    process.join(max(seconds, 0))
    if process.is_alive():
        print(f"{name}: the time is up", flush=True)
        process.kill()
        process.join()
    elif process.exitcode:
        print(f"{name}: failed, exit code {process.exitcode}", flush=True)


def run_part(name: str, device: Device) -> None:
    torch.manual_seed(0)
    PARTS[name](device)


if __name__ == "__main__":
    main()
