"""What only one kind of engine has to say of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from builders.cuda.target import obstacle as obstacle_of_device
from builders.engine_folder import obstacle as obstacle_of_programs
from builders.engine_folder import read_program
from builders.engine_manifest import TorchManifest, TrtManifest
from builders.memory import activation_bytes
from builders.trt.facts import read_facts
from builders.trt.load import obstacle
from builders.trt.runtime import num_slots


@dataclass(frozen=True, kw_only=True)
class OfKind:
    """Beside what every engine says."""

    facts: Mapping[str, Any]
    obstacle: str | None
    """Why it does not run here."""
    workspace_bytes: Sequence[int | None]
    """Of every rank: what a step takes beside weights and cache."""


def of_kind(folder: Path, engine: TorchManifest | TrtManifest) -> OfKind:
    """By the manifest's class."""
    return _plan(folder, engine) if isinstance(engine, TrtManifest) else _programs(folder, engine)


def _programs(folder: Path, engine: TorchManifest) -> OfKind:
    program = read_program(folder, engine.units[engine.programs[0].blocks[0]])
    types = {name: program.types[name] for name in program.inputs if name in program.types}
    world = range(engine.checkpoint.mapping.world_size)
    return OfKind(
        facts={
            "compiled": engine.compiled,
            "kernels": len(engine.kernels),
            "timed_on": engine.timed_on,
            "inputs": {name: [kind.dtype, *kind.shape] for name, kind in types.items()},
        },
        obstacle=obstacle_of_programs(engine)
        if engine.target == "cpu"
        else obstacle_of_device(engine.target),
        workspace_bytes=[activation_bytes(engine.checkpoint, rank, engine.limits) for rank in world],
    )


def _plan(folder: Path, engine: TrtManifest) -> OfKind:
    plans = [read_facts(folder, unit) for unit in engine.units]
    return OfKind(
        facts={
            "library": engine.library,
            "stripped": engine.stripped,
            "slots": num_slots(engine.limits),
            "plans": [
                {
                    "tensors": [asdict(tensor) for tensor in plan.tensors],
                    "num_weight_inputs": len(plan.weight_inputs),
                }
                for plan in plans
            ],
        },
        obstacle=obstacle(engine),
        workspace_bytes=[None if unit is None else plans[unit].activation_bytes for unit in engine.ranks],
    )


def row_of_kind(found: Mapping[str, Any]) -> str:
    """A few words for people."""
    if "compiled" in found:
        return _words(found)
    weights = "given to the plans when they are loaded" if found["stripped"] else "inside the plans"
    return f"plans of {found['library']}, weights {weights}, {found['slots']} slots"


def _words(found: Mapping[str, Any]) -> str:
    if found["kernels"]:
        how = f"timed on {found['timed_on']}" if found["timed_on"] else "the likeliest, not timed"
        return f"{found['kernels']} kernels, {how}"
    return "compiled" if found["compiled"] else "the graph as it was exported"


def tensors_of_kind(found: Mapping[str, Any]) -> list[Table]:
    """What plans take and give, once for those that are alike; the first layer's caches stand for all."""
    alike: dict[str, list[int]] = {}
    plans = found.get("plans", ())
    for number, plan in enumerate(plans):
        alike.setdefault(str(plan), []).append(number)
    return [_tensors(numbers, plans[numbers[0]]) for numbers in alike.values()]


def _tensors(numbers: Sequence[int], plan: Mapping[str, Any]) -> Table:
    table = Table(title=f"programs {', '.join(map(str, numbers))}", title_justify="left")
    for name in ("tensor", "mode", "dtype", "shape"):
        table.add_column(name)
    for tensor in plan["tensors"]:
        if not tensor["name"].startswith("cache.") or tensor["name"].startswith("cache.0."):
            table.add_row(tensor["name"], tensor["mode"], tensor["dtype"], " × ".join(tensor["shape"]))
    if plan["num_weight_inputs"]:
        table.add_row(f"{plan['num_weight_inputs']} weights and constants", "input", "", "")
    return table
