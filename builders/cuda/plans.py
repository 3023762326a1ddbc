"""Building for CUDA devices: fused programs, and a unit of work for every kernel that has to be chosen."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from builders.build import BuildPlan, UnitPlan, plan_build
from builders.checkpoint import Manifest
from builders.compiled import versions
from builders.cuda.choosing import DrawUnit, LikeliestUnit
from builders.cuda.site import Site, sites_of
from builders.cuda.table import KERNELS
from builders.cuda.target import Target
from builders.cuda.unit import KernelPlan, plan_kernel, triton_version, write_choice
from builders.engine_manifest import TorchManifest, Unit
from builders.fuse import fused, narrow_logits
from builders.fuse.types import typed
from builders.keys import Recipe
from builders.limits import Limits
from builders.mapping import padded_vocab
from builders.program import Program
from builders.store import Store
from builders.store.locks import Wait, locked
from builders.units import Heard

_LONGEST_TURN_S = 3600


@dataclass(frozen=True, kw_only=True)
class KernelUnit:
    """One kernel to choose."""

    plan: KernelPlan

    @property
    def recipe(self) -> Recipe:
        return self.plan.recipe

    def build(self, folder: Path, store: Store, heard: Heard) -> None:
        """Compile its candidates, take the fastest, write it."""
        from builders.cuda.choose import choose  # imports a compiler

        write_choice(choose(self.plan, partial(_device_of_ones_own, store.root), heard), folder)


@contextmanager
def _device_of_ones_own(root: Path) -> Iterator[None]:
    """Two that time kernels on one device at once would both be wrong; others of the store have others."""
    wait = Wait(limit_s=_LONGEST_TURN_S, announce=lambda _text: None)
    name = torch.cuda.get_device_properties().uuid
    with locked(root / f"device-{name}.lock", "the device, to time kernels on", wait):
        yield


@dataclass(frozen=True, kw_only=True)
class CudaPlan:
    """Everything that an engine for a CUDA device takes beside its weights."""

    target: Target
    programs: BuildPlan
    kernels: tuple[KernelUnit | DrawUnit | LikeliestUnit, ...]
    holds_weights: bool = False

    @property
    def units(self) -> tuple[UnitPlan | KernelUnit | DrawUnit | LikeliestUnit, ...]:
        return (*self.programs.units, *self.kernels)

    @property
    def num_programs(self) -> int:
        return self.programs.num_programs

    @property
    def versions(self) -> Mapping[str, str]:
        return {**versions(), "triton": triton_version()}

    def manifest(self, checkpoint: Manifest, limits: Limits, units: tuple[Unit, ...]) -> TorchManifest:
        """The engine's, once its units are built."""
        count = len(self.programs.units)
        return TorchManifest(
            target=self.target.name,
            compiled=True,
            limits=limits,
            checkpoint=checkpoint,
            units=units[:count],
            programs=self.programs.programs,
            ranks=self.programs.ranks,
            kernels=units[count:],
            timed_on=self.target.device,
            versions=self.versions,
        )


def plan_cuda(
    checkpoint: Manifest, limits: Limits, target: Target, *, only: Collection[int] | None = None
) -> CudaPlan:
    """Programs of every rank, a kernel for every site and number of rows whatever the depth, and choosing."""
    programs = plan_build(checkpoint, limits, compiled=False, only=only, rewritten=_rewritten)
    kernels: dict[str, KernelUnit] = {}
    for site, rows in _places([unit.program for unit in programs.units], limits):
        unit = KernelUnit(plan=plan_kernel(site, rows, limits, target))
        kernels.setdefault(unit.recipe.key, unit)
    return CudaPlan(
        target=target, programs=programs, kernels=(*kernels.values(), *_choosing(checkpoint, target))
    )


def _choosing(checkpoint: Manifest, target: Target) -> tuple[DrawUnit, LikeliestUnit]:
    spec = checkpoint.spec
    padded = padded_vocab(spec, checkpoint.mapping)
    likeliest = LikeliestUnit(
        vocabulary=spec.vocab_size, padded=padded, dtype=checkpoint.dtype, target=target
    )
    return DrawUnit(vocabulary=spec.vocab_size, target=target), likeliest


def _rewritten(program: Program) -> Program:
    return typed(narrow_logits(fused(program)))


def _places(programs: list[Program], limits: Limits) -> Iterator[tuple[Site, int]]:
    for program in programs:
        for site in sites_of(program, KERNELS).values():
            for rows in KERNELS[site.op].buckets(limits):
                yield site, rows
