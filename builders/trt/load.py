"""A TensorRT engine on disk as the engine of one rank: its plan, its weights, its slots."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

from builders.checkpoint import rank_tensors
from builders.constants import rank_constants
from builders.engine_manifest import TrtManifest, held_program, unit_file
from builders.errors import EngineError
from builders.mapping import rank_shape
from builders.trt.device import DeviceExecutor
from builders.trt.facts import PLAN, read_facts
from builders.trt.runtime import TrtEngine, num_slots
from builders.trt.target import is_installed, load_library, local_gpu
from builders.trt.weights import given


def obstacle(manifest: TrtManifest) -> str | None:
    """Why this machine cannot run an engine; None where it can."""
    if (gpu := local_gpu()) != manifest.target:
        return f"it was built for {manifest.target}, and {f'this GPU is {gpu}' if gpu else 'no GPU is here'}"
    if not is_installed(manifest.library):
        return f"{manifest.library} is not installed here"
    here, built = load_library(manifest.library).__version__, manifest.versions[manifest.library]
    if here != built:
        return f"it was built with {manifest.library} {built}, and this is {here}; build it again"
    return None


def load_plan(folder: Path, manifest: TrtManifest, rank: int, *, num_blocks: int) -> TrtEngine:
    """One rank on the current GPU; its blocks are slots, each as long as a sequence can be."""
    if why := obstacle(manifest):
        raise EngineError(f"{folder}: cannot run here: {why}")
    slots = num_slots(manifest.limits)
    if num_blocks > slots:
        raise EngineError(
            f"num_blocks={num_blocks}: a TensorRT engine's blocks are the {slots} slots it was built for, of "
            f"{manifest.limits.max_seq_len} tokens each; ask for at most that many"
        )
    return load_on(load_library(manifest.library), folder, manifest, rank, device="cuda")


def load_on(trt: Any, folder: Path, manifest: TrtManifest, rank: int, *, device: str) -> TrtEngine:
    """One rank, with the library and the device that are to run it."""
    unit = manifest.units[held_program(folder, manifest, rank)]
    checkpoint = manifest.checkpoint
    shape = rank_shape(checkpoint.spec, checkpoint.mapping, rank)
    names = read_facts(folder, unit).weight_inputs
    tensors = {
        **(rank_tensors(folder, checkpoint, rank) if names else {}),
        **rank_constants(checkpoint.spec, checkpoint.mapping, rank),
    }
    bound = {name: t.to(device) for name, t in given(names, shape.layers.start, tensors).items()}
    with unit_file(folder, unit, PLAN).open("rb") as file:
        plan = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    executor = DeviceExecutor(trt, plan, bound, device=device)
    return TrtEngine(executor, manifest.limits, first=shape.first, last=shape.last)
