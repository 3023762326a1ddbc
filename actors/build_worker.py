"""The processes that build: every unit by itself, as many at once as there are workers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from builders.build import UnitPlan, build_unit
from builders.errors import WorkerError
from builders.store import Store

Built = Callable[[int], None]
"""Hears of a unit that is in the store."""


def build_units(plans: Sequence[UnitPlan], store: Path, *, workers: int, built: Built) -> None:
    """See that every unit is in the store; those that are there already cost nothing."""
    missing = [number for number, plan in enumerate(plans) if not _is_there(plans[number], store)]
    for number in set(range(len(plans))) - set(missing):
        built(number)
    if min(workers, len(missing)) <= 1:
        for number in missing:
            build_one(plans[number], store)
            built(number)
        return
    _in_processes(plans, missing, store, min(workers, len(missing)), built)


def _is_there(plan: UnitPlan, store: Path) -> bool:
    return Store(store).find(plan.recipe.key) is not None


def build_one(plan: UnitPlan, store: Path) -> None:
    """Build a unit unless another process has or does."""
    Store(store).get_or_build(plan.recipe, lambda folder: build_unit(plan, folder))


def _in_processes(
    plans: Sequence[UnitPlan], missing: Sequence[int], store: Path, workers: int, built: Built
) -> None:
    """Fresh processes: a fork would copy this one's threads' locks."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = {number: pool.submit(build_one, plans[number], store) for number in missing}
        try:
            for number, job in jobs.items():
                job.result()
                built(number)
        except BrokenProcessPool as error:
            pool.shutdown(cancel_futures=True)
            raise WorkerError(
                "a build worker died (killed, or out of memory?); finished units are kept; "
                "run again with fewer --workers"
            ) from error
