"""From a network to a plan: builder settings, timing cache, progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builders.errors import EngineError
from builders.trt.net import reason
from builders.trt.network import Network, Profile, Sizes
from builders.trt.target import Target, load_library

Progress = Callable[[str, float], None]
"""Called with a phase and how much of it is done, 0 to 1, from TensorRT's threads."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A built engine."""

    data: memoryview
    """TensorRT's own memory: writing it to a file copies nothing."""
    timing_cache: bytes
    """What the builder learned, for the next build; empty where the library times nothing."""


def build_plan(
    network: Network, target: Target, *, timing_cache: bytes = b"", progress: Progress | None = None
) -> Plan:
    """Run TensorRT's builder; what it refuses is an error with its reason."""
    trt = load_library(target)
    _require_memory(network)
    config = network.builder.create_builder_config()
    _set_target(trt, config, target)
    # A float32 engine was asked for because ten bits of mantissa are too few.
    config.clear_flag(trt.BuilderFlag.TF32)
    for profile in network.profiles:
        config.add_optimization_profile(_profile(network, profile))
    if target.is_timed:
        config.set_timing_cache(config.create_timing_cache(timing_cache), ignore_mismatch=False)
    if progress is not None:
        config.progress_monitor = new_monitor(trt, progress)
    plan = network.builder.build_serialized_network(network.definition, config)
    if plan is None:
        raise EngineError(f"--target={target.name}: TensorRT cannot build this model: {reason(network.log)}")
    learned = bytes(config.get_timing_cache().serialize()) if target.is_timed else b""
    return Plan(data=memoryview(plan), timing_cache=learned)


def _set_target(trt: Any, config: Any, target: Target) -> None:
    """`tensorrt` builds for the GPU at hand and has nothing to set."""
    if target.capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target.capability), 0)


def _profile(network: Network, profile: Profile) -> Any:
    made = network.builder.create_optimization_profile()
    for index in range(network.definition.num_inputs):
        tensor = network.definition.get_input(index)
        if -1 in tuple(tensor.shape):
            sizes = (profile.smallest, profile.usual, profile.largest)
            made.set_shape(tensor.name, *(_shape(tensor, size) for size in sizes))
    return made


def _shape(tensor: Any, sizes: Sizes) -> tuple[int, ...]:
    named = {"batch": sizes.batch, "tokens": sizes.tokens}
    shape = enumerate(tensor.shape)
    return tuple(named[tensor.get_dimension_name(axis)] if size == -1 else size for axis, size in shape)


COPIES = 2
"""Of all embedded weights, at the peak of a build: TensorRT's own, and the plan."""


def _require_memory(network: Network) -> None:
    """Refuse a plan with more weights than fit, rather than be killed for it."""
    needed = COPIES * sum(tensor.nbytes for tensor in network.held)
    free = _free_bytes()
    if needed > free:
        raise EngineError(
            f"a plan with its weights inside takes {needed:,} bytes of memory to build and "
            f"{needed - free:,} of them are missing; use --strip-plan"
        )


def _free_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(kilobytes) * 1024


def new_monitor(trt: Any, progress: Progress) -> Any:
    """TensorRT's progress as calls of a function; phases are nested and each counts its own steps."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, _parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            progress(phase_name, 0.0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress(phase_name, min(1.0, (step + 1) / self._steps[phase_name]))
            return True

        def phase_finish(self, phase_name: str) -> None:
            progress(phase_name, 1.0)

    return Monitor()
