"""The fastest of several ways to do the same work: compiled side by side, checked, timed, chosen."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context

import torch
from torch import Tensor

from builders.errors import EngineError
from builders.kernels.aot import compile_source
from builders.kernels.call import Call, Config, Runner, Source, cdiv
from builders.kernels.driver import Compiled, DriverError, MissingKernel

Rounds = Sequence[Sequence[Call]]
"""The same work several times, each time over tensors of its own."""

Timer = Callable[[Rounds], float]
"""Seconds of one round."""

_LEVEL = 0.01
"""Times that differ by less are equal, and the earlier candidate is chosen."""


class NoCandidate(EngineError):
    """Every candidate failed; the message says how."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to do the work."""

    config: Config
    rounds: Rounds
    """The first writes what is compared; those after it keep weights from staying in the L2 cache."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What became of a candidate."""

    config: Config
    seconds: float | None
    """Of one round; None where it failed."""
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class CompiledAll:
    """What compiling many sources came to."""

    kernels: list[Compiled] = field(default_factory=list)
    problems: dict[Source, str] = field(default_factory=dict)


Compiler = Callable[[Source, int], Compiled]


def compile_all(
    sources: Iterable[Source], capability: int, processes: int, compiler: Compiler = compile_source
) -> CompiledAll:
    """Compile different sources in several processes; what does not compile is a problem, not an error."""
    result, interrupted, different = CompiledAll(), [], list(dict.fromkeys(sources))
    with _pool(max(1, min(processes, len(different)))) as pool:
        futures = {source: _submit(pool, compiler, source, capability) for source in different}
        for source, future in futures.items():
            if not _collect(source, future, result):
                interrupted.append(source)
    for source in interrupted:  # by a compiler that crashed, perhaps over another source
        with _pool(1) as pool:
            if not _collect(source, _submit(pool, compiler, source, capability), result):
                result.problems[source] = "the compiler crashed"
    return result


def _pool(processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, get_context("spawn"))


def _submit(
    pool: ProcessPoolExecutor, compiler: Compiler, source: Source, capability: int
) -> Future[Compiled]:
    try:
        return pool.submit(compiler, source, capability)
    except BrokenProcessPool as error:  # by a source before
        future: Future[Compiled] = Future()
        future.set_exception(error)
        return future


def _collect(source: Source, future: Future[Compiled], result: CompiledAll) -> bool:
    """Note how it ended; False where the process ended with it."""
    problem = future.exception()
    if isinstance(problem, BrokenProcessPool):
        return False
    if problem is None:
        result.kernels.append(future.result())
    else:
        result.problems[source] = f"{type(problem).__name__}: {problem}".splitlines()[0]
    return True


def tune(
    candidates: Iterable[Candidate], out: Tensor, run: Runner, timer: Timer, *, tolerance: float = 0.02
) -> Measured:
    """The fastest of candidates that agree; `out` is what the first round of each writes."""
    return choose(measure(candidates, out, run, timer, tolerance=tolerance))


def choose(measured: Iterable[Measured]) -> Measured:
    """The fastest, or the first of those that are as fast."""
    measured = list(measured)
    seconds = [one.seconds for one in measured if one.seconds is not None]
    if not seconds:
        problems = [f"{dict(one.config.blocks)}: {one.problem}" for one in measured]
        raise NoCandidate("no way to run a kernel: " + ("; ".join(problems) or "none was given"))
    limit = min(seconds) * (1 + _LEVEL)
    return next(one for one in measured if one.seconds is not None and one.seconds <= limit)


def measure(
    candidates: Iterable[Candidate],
    out: Tensor,
    run: Runner,
    timer: Timer,
    *,
    tolerance: float,
    expected: Tensor | None = None,
) -> list[Measured]:
    """Check each candidate against what is expected, or else the first that runs, and time it."""
    measured: list[Measured] = []
    for candidate in candidates:
        out.fill_(float("nan"))
        try:
            run(candidate.rounds[0])
            problem = _difference(out, expected, tolerance)
            seconds = None if problem else timer(candidate.rounds)
        except (DriverError, MissingKernel) as error:
            problem, seconds = str(error), None
        if seconds is not None and expected is None:
            expected = out.clone()
        measured.append(Measured(config=candidate.config, seconds=seconds, problem=problem))
    return measured


def _difference(out: Tensor, expected: Tensor | None, tolerance: float) -> str:
    """What is wrong with a result, "" for nothing; `tolerance` is a part of the largest value."""
    if not out.isfinite().all():
        return "results that are not finite"
    if expected is None:
        return ""
    error = (out.float() - expected.float()).abs().max().item()
    limit = tolerance * expected.float().abs().max().item()
    return "" if error <= limit else f"differs from what is expected by {error:.3g}, more than {limit:.3g}"


@dataclass(frozen=True, kw_only=True)
class GraphTimer:
    """Times rounds inside a CUDA graph, as an engine launches them."""

    run: Runner
    launches: int = 100
    """At least so many rounds in the graph."""
    replays: int = 5

    def __call__(self, rounds: Rounds) -> float:
        """Median seconds of one round."""
        return self.graph_seconds(lambda index: self.run(rounds[index]), len(rounds))

    def graph_seconds(self, work: Callable[[int], object], rounds: int) -> float:
        """Median seconds of `work`, called with 0 to rounds - 1 in turn; anything that can be captured."""
        cycles = cdiv(self.launches, rounds)
        graph = _captured(lambda: [work(index) for _ in range(cycles) for index in range(rounds)])
        graph.replay()
        times = [_elapsed(graph.replay) for _ in range(self.replays)]
        return statistics.median(times) / (cycles * rounds)


def _captured(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    graph, side = torch.cuda.CUDAGraph(), _side_stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        work()  # what is loaded or allocated on a first call cannot be captured
        torch.cuda.synchronize()
        graph.capture_begin()
        try:
            work()
        finally:
            graph.capture_end()
    return graph


@cache
def _side_stream() -> torch.cuda.Stream:
    """Nothing can be captured on the default stream, and libraries keep memory for every other."""
    return torch.cuda.Stream()


def _elapsed(work: Callable[[], object]) -> float:
    """Seconds on the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def rounds_for(num_bytes: int, l2_bytes: int) -> int:
    """How many copies of weights of this size it takes to read each from memory, whatever the cache keeps."""
    return max(2, cdiv(3 * l2_bytes, max(num_bytes, 1)))
