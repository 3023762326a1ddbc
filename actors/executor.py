"""What carries out a plan: the same jobs in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

Work = Callable[[JobT, Callable[[int], None]], ResultT]
"""Does one job, saying what it has done on the way; a function of a module. It may be done again: what it has
published is found, and what it has not published is gone."""


class Witness(Protocol):
    """Hears what becomes of jobs, by their numbers, in the thread that has them carried out."""

    def began(self, job: int, where: str) -> None:
        """A worker has it in hand."""

    def advanced(self, job: int, amount: int) -> None:
        """So much more is done; less than nothing where an attempt was lost."""

    def done(self, job: int) -> None:
        """It has a result."""

    def failed(self, job: int, where: str, cause: str) -> None:
        """An attempt was lost; it may be tried again."""

    def look(self) -> None:
        """Called every so often. What this raises ends everything."""


class Executor(Protocol):
    """One interface, whoever works."""

    def run(
        self, work: Work[JobT, ResultT], jobs: Sequence[JobT], names: Sequence[str], witness: Witness
    ) -> list[ResultT]:
        """Every job's result; `names` say what each is: "rank 3". No job is in hand when this returns."""


class Unheard:
    """A witness that nobody asks."""

    def began(self, job: int, where: str) -> None: ...

    def advanced(self, job: int, amount: int) -> None: ...

    def done(self, job: int) -> None: ...

    def failed(self, job: int, where: str, cause: str) -> None: ...

    def look(self) -> None: ...


AnyWork = Work[Any, Any]
