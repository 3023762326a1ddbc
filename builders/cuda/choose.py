"""Choosing kernels: candidates compiled side by side, then timed on the device, where there is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from triton.errors import TritonError

from builders.cuda.example import Load, example
from builders.cuda.table import KERNELS
from builders.cuda.unit import Choice, KernelPlan, calls_of, candidates, sources_of
from builders.errors import EngineError
from builders.kernels.aot import KernelTooLarge, compile_source
from builders.kernels.call import Config, Source
from builders.kernels.driver import Compiled, Kernels
from builders.kernels.tune import Candidate, GraphTimer, rounds_for, tune
from builders.units import Heard

_MOST_ROUNDS = 24


def choose(plan: KernelPlan, exclusive: Callable[[], AbstractContextManager[None]], heard: Heard) -> Choice:
    """Compile the candidates; time them where there is a device, which nobody else may time on meanwhile."""
    compiler = _Compiler(plan.target.capability)
    configs = candidates(plan.site, plan.rows, plan.limits, plan.target)
    fitting: list[Config] = []
    for number, config in enumerate(configs):
        if compiler.all_compile(sources_of(plan, config)):
            fitting.append(config)
            if plan.target.device is None:
                return _choice(plan, config, compiler.compiled, None)
        heard(0.8 * (number + 1) / len(configs))
    if not fitting:
        problems = "; ".join(sorted(compiler.problems))
        raise EngineError(f"{plan.site.op} for {plan.rows} rows: nothing compiles: {problems}")
    if len(fitting) == 1:
        return _choice(plan, fitting[0], compiler.compiled, None)
    with exclusive():
        return _timed(plan, fitting, compiler.compiled)


class _Compiler:
    """Compiles each source once; candidates may share some."""

    def __init__(self, capability: int) -> None:
        self._capability = capability
        self.compiled: dict[Source, Compiled] = {}
        self.problems: set[str] = set()

    def all_compile(self, sources: Sequence[Source]) -> bool:
        try:
            for source in sources:
                if source not in self.compiled:
                    self.compiled[source] = compile_source(source, self._capability)
        except (KernelTooLarge, TritonError, RuntimeError) as error:
            self.problems.add(f"{source.kernel}: {' '.join(str(error).split())[-300:]}")
            return False
        return True


def _choice(
    plan: KernelPlan, config: Config, compiled: Mapping[Source, Compiled], seconds: float | None
) -> Choice:
    args = example(plan.site, Load.of(plan.rows, plan.limits), "meta")
    return Choice(
        site=plan.site.key(plan.rows),
        config=config,
        compiled=tuple(compiled[source] for source in sources_of(plan, config)),
        scratch=KERNELS[plan.site.op].scratch(config, args),
        seconds=seconds,
    )


def _timed(plan: KernelPlan, fitting: Sequence[Config], compiled: Mapping[Source, Compiled]) -> Choice:
    """The fastest on this machine's device."""
    every = _arguments(plan)
    outs = [KERNELS[plan.site.op].output(args) for args in every]
    runner = Kernels(compiled.values())
    ways = [
        Candidate(
            config=config,
            rounds=[calls_of(plan, config, args, out, "cuda") for args, out in zip(every, outs, strict=True)],
        )
        for config in fitting
    ]
    best = tune(ways, outs[0], runner.run, GraphTimer(run=runner.run, launches=_launches(every[0])))
    return _choice(plan, best.config, compiled, best.seconds)


def _launches(args: Sequence[Any]) -> int:
    """Enough for a graph of two milliseconds, for kernels that read some terabytes a second."""
    size = sum(arg.nbytes for arg in args if isinstance(arg, Tensor))
    return max(10, min(100, int(2e-3 / (size / 3e12 + 3e-6))))


def _arguments(plan: KernelPlan) -> list[list[Any]]:
    """As many sets as keep what is read from staying in the cache."""
    load = Load.of(plan.rows, plan.limits)
    first = example(plan.site, load, "cuda")
    size = sum(arg.nbytes for arg in first if isinstance(arg, Tensor))
    rounds = min(rounds_for(size, torch.cuda.get_device_properties().L2_cache_size), _MOST_ROUNDS)
    return [first, *(example(plan.site, load, "cuda") for _ in range(rounds - 1))]
