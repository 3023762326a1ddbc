"""What an engine holds: target, limits, programs, the memory of every rank, whether it runs here."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from builders.checkpoint import check_file
from builders.engine_manifest import EngineManifest, TrtManifest, check_unit, read_engine
from builders.memory import cache_bytes_per_token
from cluster.checkpoints import rank_sizes
from cluster.inspect import size, weights_of
from cluster.inspect_kinds import of_kind, row_of_kind, tensors_of_kind


def inspect_engine(folder: Path, *, verify: bool) -> dict[str, Any]:
    """Everything that is known about an engine."""
    engine = read_engine(folder)
    for unit in engine.every_unit if verify else ():
        check_unit(folder, unit)
    for written in engine.checkpoint.ranks if verify else ():
        if not isinstance(engine, TrtManifest) or engine.stripped:
            check_file(folder / written.name, written, verify=True)
    kind = of_kind(folder, engine)
    sizes = rank_sizes(engine.checkpoint)
    return {
        "kind": f"{engine.kind} engine",
        "key": engine.key,
        "target": engine.target,
        **kind.facts,
        "runs_here": _runs_here(engine, kind.obstacle),
        "limits": asdict(engine.limits),
        "model": engine.checkpoint.spec.to_json(),
        "mapping": asdict(engine.checkpoint.mapping),
        "units": [
            {"key": unit.key, "num_bytes": sum(file.num_bytes for file in unit.files)}
            for unit in engine.every_unit
        ],
        "weights": weights_of(engine.checkpoint),
        "ranks": [
            {**_rank(engine, rank, num_bytes), "workspace_bytes": kind.workspace_bytes[rank]}
            for rank, num_bytes in enumerate(sizes)
        ],
        "versions": dict(engine.versions),
        "verified": verify,
    }


def _runs_here(engine: EngineManifest, obstacle: str | None) -> str:
    if engine.checkpoint.held == ():
        return "no: it holds programs only; build again from the checkpoint to link its weights"
    return f"no: {obstacle}" if obstacle else "yes"


def _rank(engine: EngineManifest, rank: int, weights: int) -> dict[str, Any]:
    limits, per_token = engine.limits, cache_bytes_per_token(engine.checkpoint, rank)
    return {
        "rank": rank,
        "programs": engine.ranks[rank],
        "weight_bytes": rank_sizes(engine.checkpoint)[rank],
        "cache_bytes_per_token": per_token,
        "full_cache_bytes": per_token * limits.max_seq_len * limits.max_sequences,
    }


def show_engine(found: dict[str, Any], console: Console) -> None:
    """The same, for people."""
    model, mapping = found["model"], found["mapping"]
    rows = {
        "target": f"{found['target']}, {row_of_kind(found)}",
        "runs here": found["runs_here"],
        "model": f"{model['family']}, {model['num_layers']} layers of width {model['hidden_size']}",
        "layout": f"tp {mapping['tp_size']} · pp {mapping['pp_size']} · ep {mapping['ep_size']}",
        "weights": found["weights"],
        "limits": ", ".join(f"{name} {value}" for name, value in found["limits"].items() if value),
        "programs": f"{len(found['units'])} units, {size(sum(unit['num_bytes'] for unit in found['units']))}",
        "versions": ", ".join(f"{name} {number}" for name, number in found["versions"].items()),
        "key": found["key"],
    }
    table = Table(title=found["kind"], show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table, *tensors_of_kind(found), _ranks(found["ranks"]))


def _ranks(ranks: list[dict[str, Any]]) -> Table:
    table = Table(title="ranks", title_justify="left")
    for name in ("rank", "programs", "weights", "cache per token", "cache at its limits", "workspace"):
        table.add_column(name, justify="right")
    for rank in ranks:
        names = ("weight_bytes", "cache_bytes_per_token", "full_cache_bytes", "workspace_bytes")
        sizes = ("unknown" if rank[name] is None else size(rank[name]) for name in names)
        table.add_row(
            str(rank["rank"]), "not built" if rank["programs"] is None else str(rank["programs"]), *sizes
        )
    return table
