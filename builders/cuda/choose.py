"""Choosing kernels: candidates compiled side by side, then timed on the device, where there is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from builders.cuda.example import Load, example
from builders.cuda.launch import KERNELS
from builders.cuda.unit import Choice, KernelPlan, calls_of, candidates, sources_of
from builders.errors import EngineError
from builders.kernels.call import Config, Source
from builders.kernels.driver import Compiled, Kernels
from builders.kernels.tune import Candidate, CompiledAll, GraphTimer, compile_all, rounds_for, tune

_MOST_ROUNDS, _LIKELIEST = 24, 3

Made = Callable[[KernelPlan, Choice], None]
"""Hears of every choice."""


def choose_all(plans: Sequence[KernelPlan], *, processes: int, made: Made) -> None:
    """Compile what all plans want at once; choose one by one, for they share a device."""
    wanted = [wanted_sources(plan) for plan in plans]
    sources = (source for ways in wanted for _, way in ways for source in way)
    done = compile_all(sources, plans[0].target.capability, processes)
    compiled = {kernel.source: kernel for kernel in done.kernels}
    for plan, ways in zip(plans, wanted, strict=True):
        fitting = [config for config, way in ways if all(source in compiled for source in way)]
        if not fitting:
            raise EngineError(_nothing_compiles(plan, ways, done))
        made(plan, (_timed if plan.target.device else _likeliest)(plan, fitting, compiled))


Ways = Sequence[tuple[Config, Sequence[Source]]]


def wanted_sources(plan: KernelPlan) -> Ways:
    """Of every candidate; without a device to time them on, of the likeliest few."""
    configs = candidates(plan.site, plan.rows, plan.limits, plan.target)
    if plan.target.device is None:
        configs = configs[:_LIKELIEST]
    return [(config, sources_of(plan, config)) for config in configs]


def _nothing_compiles(plan: KernelPlan, ways: Ways, done: CompiledAll) -> str:
    problems = {done.problems[source] for _, way in ways for source in way if source in done.problems}
    return f"{plan.site.op} for {plan.rows} rows: no kernel compiles: {'; '.join(sorted(problems))}"


def _likeliest(plan: KernelPlan, fitting: Sequence[Config], compiled: Mapping[Source, Compiled]) -> Choice:
    return _choice(plan, fitting[0], compiled, None)


def _choice(
    plan: KernelPlan, config: Config, compiled: Mapping[Source, Compiled], seconds: float | None
) -> Choice:
    args = example(plan.site, Load.of(plan.rows, plan.limits), "meta")
    return Choice(
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
    best = tune(ways, outs[0], runner.run, GraphTimer(run=runner.run))
    return _choice(plan, best.config, compiled, best.seconds)


def _arguments(plan: KernelPlan) -> list[list[Any]]:
    """As many sets as keep what is read from staying in the cache."""
    load = Load.of(plan.rows, plan.limits)
    first = example(plan.site, load, "cuda")
    size = sum(arg.nbytes for arg in first if isinstance(arg, Tensor))
    rounds = min(rounds_for(size, torch.cuda.get_device_properties().L2_cache_size), _MOST_ROUNDS)
    return [first, *(example(plan.site, load, "cuda") for _ in range(rounds - 1))]
