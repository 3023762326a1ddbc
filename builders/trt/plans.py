"""Which plans the ranks of an engine need, and one unit of work for every distinct plan."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from builders.build import program_shape
from builders.checkpoint import Manifest, rank_tensors
from builders.engine_manifest import TrtManifest, Unit
from builders.export import Graphs, export_rank
from builders.keys import Recipe, content_key
from builders.limits import Limits, within_window
from builders.program import Program
from builders.store import Store
from builders.trt.build import build_plan
from builders.trt.facts import PLAN, facts_of, write_facts
from builders.trt.network import Network, lower, profiles_of
from builders.trt.target import Target, check_target, load_library
from builders.trt.weights import Weights
from builders.units import Heard


@dataclass(frozen=True, kw_only=True)
class PlanUnit:
    """One plan to build; plain data that a worker can be sent."""

    recipe: Recipe
    """Its content key, and what the key is made of."""
    graphs: Graphs
    checkpoint: Manifest
    rank: int
    """The first of those that run it."""
    limits: Limits
    target: Target
    weights: Path | str | None
    """What goes into the plan: of a checkpoint's folder, or of the rank's own entry in the store, by its key;
    None where weights are given to it when it runs."""

    def build(self, folder: Path, store: Store, heard: Heard) -> None:
        """Write the plan and what is known of it; what the builder learned goes to the store."""
        trt, timings = load_library(self.target.library), timing_cache_name(self.target)
        known = store.read_blob(timings) if self.target.is_timed else None
        with self.opened_weights(store) as weights:
            network = self.network(trt, weights)
            plan = build_plan(network, self.target, timing_cache=known or b"", heard=heard)
        (folder / PLAN).write_bytes(plan.data)
        write_facts(folder, facts_of(trt, network, plan))
        if plan.timing_cache:
            # Of two builds at once the last wins: what the other learned is only measured again.
            store.write_blob(timings, plan.timing_cache)

    def network(self, trt: Any, weights: Weights | None = None) -> Network:
        """What TensorRT is to build."""
        checkpoint, dtype = self.checkpoint, getattr(torch, self.checkpoint.dtype)
        spec, mapping = checkpoint.spec, checkpoint.mapping
        return lower(self.graphs, spec, mapping, self.rank, dtype, self.limits, trt, weights)

    @contextmanager
    def opened_weights(self, store: Store) -> Iterator[Weights | None]:
        """Hashed before they are mapped: other checkpoints' builds will trust the key."""
        if isinstance(self.weights, str):
            with store.open(self.weights, verify=False) as entry:
                yield self._mapped(entry.folder)
        else:
            yield self._mapped(self.weights) if self.weights else None

    def _mapped(self, folder: Path) -> Weights:
        return rank_tensors(folder, self.checkpoint, self.rank, verify=True).__getitem__


@dataclass(frozen=True, kw_only=True)
class TrtPlan:
    """Everything that a TensorRT engine takes beside its weights."""

    target: Target
    stripped: bool
    units: tuple[PlanUnit, ...]
    ranks: tuple[int | None, ...]
    """For every rank, which of the units is its plan; None for a rank that is left out."""

    @property
    def num_programs(self) -> int:
        return len(self.units)

    @property
    def holds_weights(self) -> bool:
        return not self.stripped

    @property
    def versions(self) -> Mapping[str, str]:
        return versions(self.target)

    def manifest(self, checkpoint: Manifest, limits: Limits, units: tuple[Unit, ...]) -> TrtManifest:
        """The engine's, once its units are built."""
        return TrtManifest(
            target=self.target.name,
            library=self.target.library,
            stripped=self.stripped,
            limits=limits,
            checkpoint=checkpoint,
            units=units,
            ranks=self.ranks,
            versions=self.versions,
        )


def plan_plans(
    checkpoint: Manifest,
    folder: Path,
    limits: Limits,
    target: Target,
    *,
    strip: bool,
    only: Collection[int] | None = None,
    entries: Mapping[int, str] = MappingProxyType({}),
) -> TrtPlan:
    """Export one rank of every shape; without weights, ranks of equal shape share a plan.

    Ranks that are entries of the store are named by their keys: not everyone who builds sees the folder.
    """
    graphs: dict[Any, Graphs] = {}
    units: dict[str, PlanUnit] = {}
    ranks: list[int | None] = []
    for rank in range(checkpoint.mapping.world_size):
        if only is not None and rank not in only:
            ranks.append(None)
            continue
        shape = program_shape(checkpoint, rank)
        if shape not in graphs:
            graphs[shape] = _exported(checkpoint, rank, limits)
            check_target(target, checkpoint.spec, graphs[shape], limits)
        weights = None if strip else entries.get(rank, folder)
        unit = _unit(graphs[shape], checkpoint, rank, limits, target, weights)
        units.setdefault(unit.recipe.key, unit)
        ranks.append(list(units).index(unit.recipe.key))
    return TrtPlan(target=target, stripped=strip, units=tuple(units.values()), ranks=tuple(ranks))


def _exported(checkpoint: Manifest, rank: int, limits: Limits) -> Graphs:
    """Slots stand in for the paged cache, so its block size is no part of a plan."""
    spec = within_window(checkpoint.spec, limits)
    return export_rank(spec, checkpoint.mapping, rank, getattr(torch, checkpoint.dtype))


def _unit(
    graphs: Graphs,
    checkpoint: Manifest,
    rank: int,
    limits: Limits,
    target: Target,
    weights: Path | str | None,
) -> PlanUnit:
    inputs: dict[str, Any] = {
        "programs": _hashes(graphs),
        "layers": graphs.layers,
        "spec": checkpoint.spec.to_json(),
        "dtype": checkpoint.dtype,
        "slot_tokens": limits.max_seq_len,
        "profiles": [asdict(profile) for profile in profiles_of(limits)],
        "target": {name: getattr(target, name) for name in ("name", "library", "gpu")},
        "versions": dict(versions(target)),
        "lowering": _lowering(),
        "weights": None if weights is None else _weights_of(checkpoint, rank),
    }
    return PlanUnit(
        recipe=Recipe("tensorrt-plan", inputs),
        graphs=graphs,
        checkpoint=checkpoint,
        rank=rank,
        limits=limits,
        target=target,
        weights=weights,
    )


def _hashes(graphs: Graphs) -> dict[str, Any]:
    def key(program: Program | None) -> str | None:
        return None if program is None else content_key(program=program.to_json())

    return {
        "embed": key(graphs.embed),
        "rotary": key(graphs.rotary),
        "blocks": list(map(key, graphs.blocks)),
        "head": key(graphs.head),
    }


def _weights_of(checkpoint: Manifest, rank: int) -> dict[str, Any]:
    """What decides the weights and constants of a rank."""
    decided = {"mapping": asdict(checkpoint.mapping), "rank": rank}
    if checkpoint.random_seed is not None and checkpoint.held is None:
        return {**decided, "random_seed": checkpoint.random_seed}
    return {**decided, "sha256": checkpoint.rank_file(rank).sha256}


EXECUTION = ("batches", "device", "load", "runtime")
"""Files that plans do not depend on."""


@cache
def _lowering() -> str:
    """Of the code that makes plans of programs: a change to it makes other plans."""
    files = sorted(file for file in Path(__file__).parent.glob("*.py") if file.stem not in EXECUTION)
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def versions(target: Target) -> Mapping[str, str]:
    """Of the library that makes plans, and the only one that runs them."""
    return {target.library: str(load_library(target.library).__version__)}


def timing_cache_name(target: Target) -> str:
    """The blob of the store that holds what a builder learned of a GPU."""
    (version,) = versions(target).values()
    gpu = (target.gpu or target.name).replace("/", "-").replace(" ", "-")
    return f"timing-{target.library}-{version}-{target.name}-{gpu}"
