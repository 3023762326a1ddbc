"""What each kind of engine makes of the options of `rankforge build`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from builders.build import plan_build
from builders.errors import EngineError
from builders.limits import Limits
from builders.units import Plan
from cluster.build_options import TARGETS, BuildOptions
from cluster.build_source import Source, wanted_ranks


def plan_of(options: BuildOptions, source: Source, limits: Limits) -> Plan:
    """What is to be built for an engine of the kind that the options name."""
    return _PLANS[options.engine](options, source, limits)


def target_of(options: BuildOptions) -> str:
    """What the engine is to run on."""
    return options.target or TARGETS[options.engine][0]


def workers_of(options: BuildOptions) -> int:
    """Compiling kernels keeps one core busy each; other compilers use all cores themselves."""
    by_default = 1 if target_of(options) not in _CUDA else os.cpu_count() or 1
    return options.workers or by_default


_CUDA = frozenset(TARGETS["torch"]) - {"cpu"}


def _torch(options: BuildOptions, source: Source, limits: Limits) -> Plan:
    checkpoint, only = source.manifest, wanted_ranks(options, source.manifest.mapping)
    if target_of(options) == "cpu":
        return plan_build(checkpoint, limits, compiled=not options.no_compile, only=only)
    from builders.cuda.plans import plan_cuda
    from builders.cuda.target import choose_target

    return plan_cuda(checkpoint, limits, choose_target(target_of(options)), only=only)


def _tensorrt(options: BuildOptions, source: Source, limits: Limits) -> Plan:
    from builders.trt.plans import plan_plans
    from builders.trt.target import choose_target

    target = choose_target(target_of(options), options.trt_library)
    only = wanted_ranks(options, source.manifest.mapping)
    return plan_plans(source.manifest, source.folder, limits, target, strip=options.strip_plan, only=only)


_PLANS: Mapping[str, Callable[[BuildOptions, Source, Limits], Plan]] = {
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
    for name, kind in _OF_ONE_KIND.items():
        if (
            getattr(options, name) != BuildOptions.__dataclass_fields__[name].default
            and kind != options.engine
        ):
            raise EngineError(f"--{name}: only for --engine {kind}; leave it out, or add --engine {kind}")


_OF_ONE_KIND: Mapping[str, str] = {"no_compile": "torch", "strip_plan": "tensorrt", "trt_library": "tensorrt"}
"""Options that other kinds have no use for."""
