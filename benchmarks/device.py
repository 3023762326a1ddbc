"""A CUDA device as benchmarks see it: its facts, kernels compiled for it, candidates measured on it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from builders.kernels.call import Config, Source
from builders.kernels.driver import Compiled, Kernels
from builders.kernels.tune import Candidate, GraphTimer, Measured, choose, compile_all, measure

BF16 = torch.bfloat16
SECONDS_PER_GRAPH = 2e-3
"""How much a graph should hold; less is shorter than the noise, more takes long over many candidates."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What everything is measured on and beside."""

    capability: int
    l2_bytes: int
    read_bytes_per_s: float
    processes: int
    known: dict[Source, Compiled | None] = field(default_factory=dict)
    """What this process has compiled so far; None did not compile."""

    @property
    def overlaps(self) -> tuple[bool, ...]:
        """Whether kernels may start while the one before ends: both are tried."""
        return (False, True) if self.capability >= 90 else (False,)

    def timer(self, kernels: Kernels, num_bytes: float) -> GraphTimer:
        """Enough launches for a graph of a good length."""
        launches = SECONDS_PER_GRAPH / (num_bytes / self.read_bytes_per_s + 3e-6)
        return GraphTimer(run=kernels.run, launches=min(200, max(10, int(launches))))


def opened(processes: int) -> Device:
    """The device's facts, read bandwidth measured."""
    facts = torch.cuda.get_device_properties(0)
    big = torch.zeros(1 << 30, device="cuda")
    timer = GraphTimer(run=lambda _: None, launches=5)
    seconds = min(timer.graph_seconds(lambda _: big.sum(), 1), timer.graph_seconds(lambda _: big.amax(), 1))
    half = big.numel() // 2
    copied = timer.graph_seconds(lambda _: big[:half].copy_(big[half:]), 1)
    device = Device(
        capability=10 * facts.major + facts.minor,
        l2_bytes=facts.L2_cache_size,
        read_bytes_per_s=4 * big.numel() / seconds,
        processes=processes,
    )
    print(
        f"{facts.name}, compute capability {facts.major}.{facts.minor}, "
        f"{facts.multi_processor_count} processors, {facts.L2_cache_size >> 20} MiB of L2, "
        f"torch {torch.__version__}\n"
        f"reads {device.read_bytes_per_s / 1e9:.0f} GB/s, copies {4 * big.numel() / copied / 1e9:.0f} GB/s",
        flush=True,
    )
    return device


def compiled(device: Device, sources: Iterable[Source]) -> Kernels:
    """All that compile, those that are new in several processes, and how many these are."""
    start = time.monotonic()
    new = [source for source in sources if source not in device.known]
    result = compile_all(new, device.capability, device.processes)
    device.known.update({kernel.source: kernel for kernel in result.kernels} | dict.fromkeys(result.problems))
    kinds = Counter(problem.split(":")[0] for problem in result.problems.values())
    if new:
        print(
            f"  {len(result.kernels)} kernels compiled in {time.monotonic() - start:.1f} s"
            + "".join(f", {count} {kind}" for kind, count in kinds.items()),
            flush=True,
        )
    for problem in {p for p in result.problems.values() if not p.startswith("KernelTooLarge")}:
        print(f"  {problem[:300]}", flush=True)
    return Kernels(kernel for kernel in device.known.values() if kernel)


def sources_of(candidates: Iterable[Candidate]) -> list[Source]:
    return [call.source for candidate in candidates for call in candidate.rounds[0]]


def best_of(
    candidates: Sequence[Candidate], out: Tensor, expected: Tensor, timer: GraphTimer
) -> Measured | None:
    """The fastest that agrees with PyTorch; says what became of the others."""
    measured = measure(candidates, out, timer.run, timer, tolerance=0.02, expected=expected)
    problems = Counter(one.problem for one in measured if one.problem and "not among" not in one.problem)
    for problem, count in problems.items():
        print(f"    {count} of {len(measured)} candidates: {problem[:200]}", flush=True)
    if len(measured) == sum(1 for one in measured if one.seconds is None):
        print("    NO CANDIDATE IS RIGHT", flush=True)
        return None
    return choose(measured)


def cut(config: Config) -> str:
    blocks = " ".join(f"{name}={size}" for name, size in config.blocks.items())
    return f"{blocks} warps={config.warps} overlap={int(config.overlap)}"


def normal(*shape: int, deviation: float = 1.0) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=BF16) * deviation
