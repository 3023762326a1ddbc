"""From a network to a plan: builder settings, timing cache, progress."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builders.errors import EngineError
from builders.trt.logger import hear
from builders.trt.net import reason
from builders.trt.network import Network, Profile, Sizes
from builders.trt.progress import Heard, new_monitor
from builders.trt.target import Target, load_library


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A built engine."""

    data: memoryview
    """TensorRT's own memory: writing it to a file copies nothing."""
    timing_cache: bytes
    """What the builder learned, for the next build; empty where the library times nothing."""
    activation_bytes: int | None
    """What an execution needs beside weights and caches, by the builder's own count: an engine could be
    asked for it only where the GPU is."""


def build_plan(
    network: Network, target: Target, *, timing_cache: bytes = b"", heard: Heard | None = None
) -> Plan:
    """Run TensorRT's builder; what it refuses is an error with its reason."""
    trt = load_library(target.library)
    hear(trt, network.log)
    _require_memory(network)
    config = network.builder.create_builder_config()
    _set_target(trt, config, target)
    # A float32 engine was asked for because ten bits of mantissa are too few.
    config.clear_flag(trt.BuilderFlag.TF32)
    for profile in network.profiles:
        config.add_optimization_profile(_profile(network, profile))
    if target.is_timed:
        _set_timing_cache(config, timing_cache)
    if heard is not None:
        config.progress_monitor = new_monitor(trt, heard)
    plan = network.builder.build_serialized_network(network.definition, config)
    if plan is None:
        raise EngineError(f"--target={target.name}: TensorRT cannot build this model: {reason(network.log)}")
    learned = bytes(config.get_timing_cache().serialize()) if target.is_timed else b""
    activations = max(network.log.activation_bytes, default=None)
    return Plan(data=memoryview(plan), timing_cache=learned, activation_bytes=activations)


def _set_target(trt: Any, config: Any, target: Target) -> None:
    """`tensorrt` builds for the GPU at hand and has nothing to set."""
    if target.capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target.capability), 0)


def _set_timing_cache(config: Any, known: bytes) -> None:
    """What was learned by another GPU or version is no use: then the builder starts afresh."""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


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
