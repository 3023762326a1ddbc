"""The processes that convert: every rank by itself, as many at once as there are workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from actors.processes import Advance, run_jobs
from builders.convert import ConvertPlan, convert_rank
from builders.tensor_file import Written


@dataclass(frozen=True, kw_only=True)
class _RankJob:
    plan: ConvertPlan
    rank: int
    folder: Path


def run_ranks(
    plan: ConvertPlan,
    folder: Path,
    *,
    workers: int,
    advance: Advance,
    only: Sequence[int] | None = None,
) -> list[Written]:
    """Write every rank's file, or those of some, into the folder; the first error ends all workers."""
    ranks = range(plan.mapping.world_size) if only is None else only
    if min(workers, len(ranks)) <= 1:
        with _one_thread():
            return [convert_rank(plan, rank, folder, partial(advance, rank)) for rank in ranks]
    jobs = [_RankJob(plan=plan, rank=rank, folder=folder) for rank in ranks]
    named = lambda job, amount: advance(ranks[job], amount)  # noqa: E731
    return run_jobs(_convert, jobs, workers=workers, advance=named, name="rank")


def _convert(job: _RankJob, advance: Callable[[int], None]) -> Written:
    with _one_thread():
        return convert_rank(job.plan, job.rank, job.folder, advance)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Copying columns takes several times as long with PyTorch's threads as without."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
