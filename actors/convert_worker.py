"""What a worker does that converts: one rank's file, of which it reads its own slices only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from actors.executor import Executor, Witness
from actors.shared_store import SharedStore
from builders.assemble import identity
from builders.convert import ConvertPlan, convert_rank, rank_file_name
from builders.errors import SourceError
from builders.keys import Recipe
from builders.sources.opened import Identity
from builders.store import Entry
from builders.tensor_file import Written


@dataclass(frozen=True, kw_only=True)
class Shelved:
    """A place in the store: what is there stays, whatever becomes of other ranks and of this job."""

    store: SharedStore
    recipe: Recipe


@dataclass(frozen=True, kw_only=True)
class RankJob:
    """One rank to convert."""

    plan: ConvertPlan
    rank: int
    place: Path | Shelved
    """A folder in the making, or an entry of its own."""
    sources: Mapping[Path, Identity] = field(default_factory=dict)
    """The files that it may read, as the planner saw them."""


def convert_ranks(jobs: Sequence[RankJob], executor: Executor, witness: Witness) -> list[Written]:
    """Have every rank's file written."""
    return executor.run(convert_one, jobs, [f"rank {job.rank}" for job in jobs], witness)


def convert_one(job: RankJob, advance: Callable[[int], None]) -> Written:
    """Write a rank's file, unless the store has it."""
    seen = _seen(job.sources)
    with _one_thread():
        if isinstance(job.place, Path):
            return convert_rank(job.plan, job.rank, job.place, advance)
        return _shelve(job, job.place, seen, advance)


def _shelve(
    job: RankJob, place: Shelved, seen: Mapping[Path, Identity], advance: Callable[[int], None]
) -> Written:
    def build(folder: Path) -> None:
        convert_rank(job.plan, job.rank, folder, advance)
        for file, before in seen.items():
            if identity(file) != before:
                raise SourceError(f"{file}: changed while it was read; run again")

    return written(place.store.open().get_or_build(place.recipe, build), job.rank)


def written(entry: Entry, rank: int) -> Written:
    """The file of a rank that the store has."""
    name = rank_file_name(rank)
    entry.path(name)
    record = entry.manifest.files[name]
    return Written(name=name, num_bytes=record.size_bytes, sha256=record.sha256)


def _seen(sources: Mapping[Path, Identity]) -> dict[Path, Identity]:
    """The files as this machine sees them: the very ones that the planner saw, or copies of equal size."""
    seen = {}
    for file, planned in sources.items():
        if not file.is_file() or (found := identity(file)).num_bytes != planned.num_bytes:
            raise SourceError(
                f"{file}: not here as the planner sees it; keep the model where all nodes see it under one "
                "path"
            )
        if found.inode == planned.inode and found != planned:
            raise SourceError(f"{file}: changed since it was opened; run again")
        seen[file] = found
    return seen


@contextmanager
def _one_thread() -> Iterator[None]:
    """Copying columns takes several times as long with PyTorch's threads as without."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
