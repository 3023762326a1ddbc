"""Building torch engines: which programs the ranks need, and one unit of work for every distinct program."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from builders.checkpoint import Manifest
from builders.compiled import compile_program, compiler_hash, processor, versions
from builders.engine_folder import PACKAGE, PROGRAM
from builders.engine_manifest import RankPrograms, TorchManifest, Unit
from builders.errors import EngineError
from builders.export import Graphs, export_rank
from builders.keys import Recipe
from builders.limits import Limits, within_window
from builders.mapping import rank_shape
from builders.program import Program
from builders.store import Store
from builders.units import Heard


@dataclass(frozen=True, kw_only=True)
class UnitPlan:
    """One program to build; plain data that a worker can be sent."""

    program: Program
    recipe: Recipe
    """Its content key, and what the key is made of."""
    processor: str | None
    """What it is compiled for, if it is."""

    @property
    def compiled(self) -> bool:
        return self.processor is not None

    def build(self, folder: Path, _store: Store, _heard: Heard) -> None:
        """Write the unit's files: a compiler says nothing until it is done."""
        if self.processor not in (None, here := processor()):
            raise EngineError(
                f"this machine is {here}, and the engine is compiled for {self.processor}; have it built by "
                "machines of one kind, on a cluster with --worker_resources, or with --no_compile"
            )
        build_unit(self, folder)


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """Everything that a torch engine takes beside its weights."""

    processor: str | None
    """What it is compiled for, if it is."""
    units: tuple[UnitPlan, ...]
    programs: tuple[RankPrograms, ...]
    ranks: tuple[int | None, ...]
    """For every rank, which of the programs it runs; None for a rank that is left out."""
    holds_weights: bool = False

    @property
    def num_programs(self) -> int:
        return len(self.programs)

    @property
    def versions(self) -> Mapping[str, str]:
        return versions()

    def manifest(self, checkpoint: Manifest, limits: Limits, units: tuple[Unit, ...]) -> TorchManifest:
        """The engine's, once its units are built."""
        return TorchManifest(
            target="cpu",
            compiled=self.processor is not None,
            limits=limits,
            checkpoint=checkpoint,
            units=units,
            programs=self.programs,
            ranks=self.ranks,
            versions=self.versions,
            processor=self.processor,
        )


Rewrite = Callable[[Program], Program]


def as_exported(program: Program) -> Program:
    """No rewriting."""
    return program


def plan_build(
    checkpoint: Manifest,
    limits: Limits,
    *,
    compiled: bool,
    only: Collection[int] | None = None,
    rewritten: Rewrite = as_exported,
    on: str | None = None,
) -> BuildPlan:
    """Export one rank of every shape: ranks of equal shape, and layers of equal structure, share.

    With `only`, other ranks are left out. What is compiled is for a processor, this machine's by default.
    """
    on = (on or processor()) if compiled else None
    units: dict[str, UnitPlan] = {}
    programs: dict[Any, RankPrograms] = {}
    ranks: list[int | None] = []
    for rank in range(checkpoint.mapping.world_size):
        if only is not None and rank not in only:
            ranks.append(None)
            continue
        shape = program_shape(checkpoint, rank)
        if shape not in programs:
            graphs = export_rank(
                within_window(checkpoint.spec, limits),
                checkpoint.mapping,
                rank,
                getattr(torch, checkpoint.dtype),
                limits.tokens_per_block,
            )
            programs[shape] = _numbered(graphs, units, rewritten, on)
        ranks.append(list(programs).index(shape))
    return BuildPlan(
        processor=on,
        units=tuple(units.values()),
        programs=tuple(programs.values()),
        ranks=tuple(ranks),
    )


def program_shape(checkpoint: Manifest, rank: int) -> Any:
    """What a rank's programs depend on: its shape, wherever its layers start."""
    shape = rank_shape(checkpoint.spec, checkpoint.mapping, rank)
    if checkpoint.spec.scale_by_layer:
        return shape
    return replace(shape, layers=range(len(shape.layers)))


def _numbered(graphs: Graphs, units: dict[str, UnitPlan], rewritten: Rewrite, on: str | None) -> RankPrograms:
    def number(program: Program | None, on: str | None) -> int | None:
        if program is None:
            return None
        plan = unit_plan(rewritten(program), on)
        units.setdefault(plan.recipe.key, plan)
        return list(units).index(plan.recipe.key)

    blocks = tuple(number(program, on) for program in graphs.blocks)
    return RankPrograms(
        # A lookup and a few cosines: a compiler has nothing to gain there.
        embed=number(graphs.embed, None),
        rotary=number(graphs.rotary, None),
        blocks=tuple(block for block in blocks if block is not None),
        layers=graphs.layers,
        head=number(graphs.head, on),
    )


def unit_plan(program: Program, on: str | None) -> UnitPlan:
    """A program with its content key: compiled files depend on the compiler and the processor too."""
    inputs: dict[str, Any] = {"program": program.to_json(), "compiled": on is not None}
    if on is not None:
        inputs |= {"versions": dict(versions()), "processor": on, "compiler": compiler_hash()}
    return UnitPlan(program=program, recipe=Recipe("torch-program", inputs), processor=on)


def build_unit(plan: UnitPlan, folder: Path) -> None:
    """Write a unit's files."""
    (folder / PROGRAM).write_text(json.dumps(plan.program.to_json(), sort_keys=True))
    if plan.compiled:
        compile_program(plan.program, folder / PACKAGE)
