"""The processes that build: every unit by itself, as many at once as there are workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from actors.processes import Advance, tell, worker_processes
from builders.errors import WorkerError
from builders.store import Store
from builders.units import UnitOfWork

WHOLE = 100
"""What a unit's progress adds up to, wherever it came from."""


def build_units(units: Sequence[UnitOfWork], store: Path, *, workers: int, advance: Advance) -> None:
    """See that every unit is in the store; those that are there already cost nothing."""
    missing = [number for number, unit in enumerate(units) if Store(store).find(unit.recipe.key) is None]
    for number in set(range(len(units))) - set(missing):
        advance(number, WHOLE)
    if min(workers, len(missing)) <= 1:
        for number in missing:
            build_one(units[number], store, partial(advance, number))
        return
    with worker_processes(min(workers, len(missing)), advance, _as_it_is) as pool:
        jobs = [pool.submit(_build_in_worker, units[number], number, store) for number in missing]
        try:
            for job in jobs:
                job.result()
        except BrokenProcessPool as error:
            raise WorkerError(
                "a build worker died (killed, or out of memory?); finished units are kept; "
                "run again with fewer --workers"
            ) from error


def build_one(unit: UnitOfWork, store: Path, advance: Callable[[int], None]) -> None:
    """Build a unit unless another process has or does."""
    shelf, steps = Store(store), Steps(advance)
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


def _as_it_is() -> None:
    """A compiler decides by the threads that there are."""


def _build_in_worker(unit: UnitOfWork, number: int, store: Path) -> None:
    build_one(unit, store, partial(tell, number))
