"""The processes that build: every unit by itself, as many at once as there are workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.processes import run_jobs
from builders.build import UnitPlan, build_unit
from builders.store import Store

Built = Callable[[int], None]
"""Hears of a unit that is in the store."""


@dataclass(frozen=True, kw_only=True)
class _UnitJob:
    plan: UnitPlan
    store: Path


def build_units(plans: Sequence[UnitPlan], store: Path, *, workers: int, built: Built) -> None:
    """See that every unit is in the store; those that are there already cost nothing."""
    missing = [number for number, plan in enumerate(plans) if not _is_there(plan, store)]
    for number in set(range(len(plans))) - set(missing):
        built(number)
    if min(workers, len(missing)) <= 1:
        for number in missing:
            build_one(plans[number], store)
            built(number)
        return
    jobs = [_UnitJob(plan=plans[number], store=store) for number in missing]
    run_jobs(_build, jobs, workers=workers, advance=lambda job, _: built(missing[job]), name="unit")


def _is_there(plan: UnitPlan, store: Path) -> bool:
    return Store(store).find(plan.recipe.key) is not None


def build_one(plan: UnitPlan, store: Path) -> None:
    """Build a unit unless another process has or does."""
    Store(store).get_or_build(plan.recipe, lambda folder: build_unit(plan, folder))


def _build(job: _UnitJob, advance: Callable[[int], None]) -> None:
    build_one(job.plan, job.store)
    advance(1)
