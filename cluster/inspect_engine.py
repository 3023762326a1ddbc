"""What an engine holds: target, limits, programs, the memory of every rank, whether it runs here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from builders.build import processor, versions
from builders.engine_folder import EngineManifest, Unit, check_written, read_engine, read_program, unit_folder
from builders.program import Program
from cluster.checkpoints import rank_sizes
from cluster.inspect import kv_bytes_per_token, size, weights_of


def inspect_engine(folder: Path, *, verify: bool) -> dict[str, Any]:
    """Everything that is known about an engine."""
    engine = read_engine(folder)
    for unit in engine.units if verify else ():
        for written in unit.files:
            check_written(unit_folder(folder, unit) / written.name, written)
    sizes = rank_sizes(engine.checkpoint)
    return {
        "kind": f"{engine.kind} engine",
        "key": engine.key,
        "target": engine.target,
        "compiled": engine.compiled,
        "runs_here": runs_here(engine),
        "limits": asdict(engine.limits),
        "model": engine.checkpoint.spec.to_json(),
        "mapping": asdict(engine.checkpoint.mapping),
        "inputs": _inputs(folder, engine),
        "units": [
            {"key": unit.key, "num_bytes": sum(file.num_bytes for file in unit.files)}
            for unit in engine.units
        ],
        "weights": weights_of(engine.checkpoint),
        "ranks": [_rank(engine, rank, num_bytes) for rank, num_bytes in enumerate(sizes)],
        "versions": dict(engine.versions),
        "verified": verify,
    }


def _size(unit: Unit) -> int:
    return sum(file.num_bytes for file in unit.files)


def runs_here(engine: EngineManifest) -> str:
    """Yes, or why not."""
    if engine.checkpoint.held == ():
        return "no: it holds programs only; build again from the checkpoint to link its weights"
    if not engine.compiled or dict(engine.versions) == dict(versions()):
        return "yes"
    built = ", ".join(f"{name} {number}" for name, number in engine.versions.items())
    return f"no: it was compiled with {built}, and this is {_here()}; build it again"


def _here() -> str:
    return ", ".join([*(f"{name} {number}" for name, number in versions().items()), processor()])


def _inputs(folder: Path, engine: EngineManifest) -> Mapping[str, list[str]]:
    """What a step gives to a layer, as sizes."""
    program: Program = read_program(folder, engine.units[engine.programs[0].blocks[0]])
    steps = (name for name in program.inputs if name in program.types)
    return {name: [program.types[name].dtype, *program.types[name].shape] for name in steps}


def _rank(engine: EngineManifest, rank: int, weights: int) -> dict[str, Any]:
    per_token = kv_bytes_per_token(engine.checkpoint, rank)
    limits = engine.limits
    return {
        "rank": rank,
        "programs": engine.ranks[rank],
        "weight_bytes": weights,
        "cache_bytes_per_token": per_token,
        "full_cache_bytes": per_token * limits.max_seq_len * limits.max_batch_size,
    }


def show_engine(found: dict[str, Any], console: Console) -> None:
    """The same, for people."""
    model, mapping = found["model"], found["mapping"]
    rows = {
        "target": f"{found['target']}, {'compiled' if found['compiled'] else 'the graph as it was exported'}",
        "runs here": found["runs_here"],
        "model": f"{model['family']}, {model['num_layers']} layers of width {model['hidden_size']}",
        "layout": f"tp {mapping['tp_size']} · pp {mapping['pp_size']} · ep {mapping['ep_size']}",
        "weights": found["weights"],
        "limits": ", ".join(f"{name} {value}" for name, value in found["limits"].items()),
        "programs": f"{len(found['units'])} units, {size(sum(unit['num_bytes'] for unit in found['units']))}",
        "versions": ", ".join(f"{name} {number}" for name, number in found["versions"].items()),
        "key": found["key"],
    }
    table = Table(title=found["kind"], show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table, _ranks(found["ranks"]))


def _ranks(ranks: list[dict[str, Any]]) -> Table:
    table = Table(title="ranks", title_justify="left")
    for name in ("rank", "programs", "weights", "cache per token", "cache at its limits"):
        table.add_column(name, justify="right")
    for rank in ranks:
        sizes = (rank[name] for name in ("weight_bytes", "cache_bytes_per_token", "full_cache_bytes"))
        programs = "not built" if rank["programs"] is None else str(rank["programs"])
        table.add_row(str(rank["rank"]), programs, *map(size, sizes))
    return table
