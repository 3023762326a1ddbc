"""What a worker does that builds: one unit, which it publishes in the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from actors.executor import Executor, ResultT, Witness
from actors.shared_store import SharedStore
from builders.units import UnitOfWork

WHOLE = 100
"""What a unit's progress adds up to, wherever it came from."""


@dataclass(frozen=True, kw_only=True)
class UnitJob:
    """One unit to build."""

    unit: UnitOfWork
    store: SharedStore


def build_units(
    units: Sequence[UnitOfWork], store: SharedStore, executor: Executor, witness: Witness
) -> None:
    """Have units built."""
    jobs = [UnitJob(unit=unit, store=store) for unit in units]
    executor.run(build_one, jobs, unit_names(units), witness)


def unit_names(units: Sequence[UnitOfWork]) -> list[str]:
    """As `rankforge store list` shows them, once they are there."""
    return [f"{unit.recipe.kind} {unit.recipe.key[:12]}" for unit in units]


def build_one(job: UnitJob, advance: Callable[[int], None]) -> None:
    """Build a unit unless another process has or does."""
    store, steps = job.store.open(), Steps(advance)
    store.get_or_build(job.unit.recipe, lambda folder: job.unit.build(folder, store, steps))
    steps(1.0)


def ask(question: Callable[[], ResultT], _advance: Callable[[int], None]) -> ResultT:
    """What only a worker knows: the device that it has."""
    return question()


class Steps:
    """Turns how much is done into how much more, in hundredths; what goes back is not counted."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance, self._done = advance, 0

    def __call__(self, share: float) -> None:
        done = int(share * WHOLE)
        if done > self._done:
            self._advance(done - self._done)
            self._done = done
