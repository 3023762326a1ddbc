"""What each kind of engine makes of the options of `rankforge build`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar

from actors.build_worker import ask
from actors.executor import Unheard
from builders.build import plan_build
from builders.compiled import processor
from builders.errors import EngineError
from builders.limits import Limits
from builders.units import Plan
from cluster.build_options import TARGETS, BuildOptions
from cluster.build_source import Source, wanted_ranks
from cluster.jobs import Crew, Kind, works_here

Target = TypeVar("Target")


def plan_of(options: BuildOptions, source: Source, limits: Limits, crew: Crew) -> Plan:
    """What is to be built for an engine of the kind that the options name."""
    return _PLANS[options.engine](options, source, limits, crew)


def target_of(options: BuildOptions) -> str:
    """What the engine is to run on."""
    return options.target or TARGETS[options.engine][0]


def kind_of(options: BuildOptions) -> Kind:
    """What the workers are to be: kernels are timed on the device that is there, and all else takes none."""
    target = target_of(options)
    kernels = target in _CUDA
    return Kind(
        gpus=_AT_HAND.get(target, 0),
        accelerator_type=options.accelerator_type if target in _AT_HAND else None,
        one_core=options.engine == "torch",
        many=kernels,
    )


_CUDA = frozenset(TARGETS["torch"]) - {"cpu"}
_AT_HAND: Mapping[str, float] = {"cuda": 0.25, "current": 1}
"""How much a worker takes of the device for which it builds. Kernels are compiled most of the time, by a core
for each worker; to time them, one at a time has the device to itself."""


def _torch(options: BuildOptions, source: Source, limits: Limits, crew: Crew) -> Plan:
    checkpoint, only = source.manifest, wanted_ranks(options, source.manifest.mapping)
    name = target_of(options)
    if name == "cpu":
        compiled = not options.no_compile
        return plan_build(checkpoint, limits, compiled=compiled, only=only, on=_processor(options, crew))
    from builders.cuda.plans import plan_cuda
    from builders.cuda.target import choose_target

    target = _chosen(options, crew, partial(choose_target, name))
    if crew.on_cluster and name not in _AT_HAND:
        target = replace(target, device=None)  # whatever GPU the machine has where this is planned
    return plan_cuda(checkpoint, limits, target, only=only)


def _processor(options: BuildOptions, crew: Crew) -> str | None:
    """What to compile for: what the workers have, unless this machine is one of theirs."""
    if options.no_compile or not crew.on_cluster or works_here():
        return None
    (found,) = crew.executor(kind_of(options)).run(ask, [processor], ["processor"], Unheard())
    return found


def _tensorrt(options: BuildOptions, source: Source, limits: Limits, crew: Crew) -> Plan:
    from builders.trt.plans import plan_plans
    from builders.trt.target import choose_target

    target = _chosen(options, crew, partial(choose_target, target_of(options), options.trt_library))
    only = wanted_ranks(options, source.manifest.mapping)
    strip, entries = options.strip_plan, source.ranks
    return plan_plans(source.manifest, source.folder, limits, target, strip=strip, only=only, entries=entries)


def _chosen(options: BuildOptions, crew: Crew, choose: Callable[[], Target]) -> Target:
    """A target; the device at hand is that of a worker."""
    if crew.on_cluster and target_of(options) in _AT_HAND:
        (found,) = crew.executor(kind_of(options)).run(ask, [choose], ["target"], Unheard())
        return found
    return choose()


_PLANS: Mapping[str, Callable[[BuildOptions, Source, Limits, Crew], Plan]] = {
    "torch": _torch,
    "tensorrt": _tensorrt,
}


def check_options(options: BuildOptions) -> None:
    """Refuse what does not go together, before anything is read."""
    if target_of(options) not in TARGETS[options.engine]:
        raise EngineError(
            f"--target={options.target}: not a target of --engine {options.engine}; "
            f"its targets are {', '.join(TARGETS[options.engine])}"
        )
    if options.no_compile and options.engine == "torch" and target_of(options) != "cpu":
        raise EngineError(
            f"--no_compile: --target {options.target} takes compiled kernels; "
            "leave it out, or use --target cpu"
        )
    if options.no_weights and options.engine == "tensorrt" and not options.strip_plan:
        raise EngineError("--no_weights: TensorRT plans hold their weights; add --strip_plan")
    if options.accelerator_type and target_of(options) not in _AT_HAND:
        raise EngineError(
            f"--accelerator_type: --target {target_of(options)} is built without a device; leave it out"
        )
    for name, kind in _OF_ONE_KIND.items():
        if (
            getattr(options, name) != BuildOptions.__dataclass_fields__[name].default
            and kind != options.engine
        ):
            raise EngineError(f"--{name}: only for --engine {kind}; leave it out, or add --engine {kind}")


_OF_ONE_KIND: Mapping[str, str] = {"no_compile": "torch", "strip_plan": "tensorrt", "trt_library": "tensorrt"}
"""Options that other kinds have no use for."""
