"""The processes that build: every unit by itself, as many at once as there are workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from actors.processes import Advance, run_jobs
from builders.store import StorePlace
from builders.units import UnitOfWork

WHOLE = 100
"""What a unit's progress adds up to, wherever it came from."""


@dataclass(frozen=True, kw_only=True)
class _UnitJob:
    unit: UnitOfWork
    store: StorePlace


def build_units(units: Sequence[UnitOfWork], store: StorePlace, *, workers: int, advance: Advance) -> None:
    """See that every unit is in the store; those that are there already cost nothing but their way here."""
    here = store.open().bring([unit.recipe.key for unit in units])
    missing = [number for number, unit in enumerate(units) if unit.recipe.key not in here]
    for number in set(range(len(units))) - set(missing):
        advance(number, WHOLE)
    if min(workers, len(missing)) <= 1:
        for number in missing:
            build_one(units[number], store, partial(advance, number))
        return
    jobs = [_UnitJob(unit=units[number], store=store) for number in missing]
    passed_on = lambda job, amount: advance(missing[job], amount)  # noqa: E731
    run_jobs(_build, jobs, workers=workers, advance=passed_on, name="unit")


def build_one(unit: UnitOfWork, store: StorePlace, advance: Callable[[int], None]) -> None:
    """Build a unit unless another process has or does."""
    shelf, steps = store.open(), Steps(advance)
    shelf.get_or_build(unit.recipe, lambda folder: unit.build(folder, shelf, steps))
    steps(1.0)


class Steps:
    """Turns how much is done into how much more, in hundredths; what goes back is not counted."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance, self._done = advance, 0

    def __call__(self, share: float) -> None:
        done = int(share * WHOLE)
        if done > self._done:
            self._advance(done - self._done)
            self._done = done


def _build(job: _UnitJob, advance: Callable[[int], None]) -> None:
    build_one(job.unit, job.store, advance)
