"""The processes that convert: every rank by itself, as many at once as there are workers."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import torch

from actors.processes import Advance, tell, worker_processes
from builders.convert import ConvertPlan, convert_rank
from builders.errors import WorkerError
from builders.tensor_file import Written


def run_ranks(plan: ConvertPlan, folder: Path, *, workers: int, advance: Advance) -> list[Written]:
    """Write every rank's file into the folder; the first error ends it and the other workers.

    `advance` hears of a rank and the bytes it wrote.
    """
    ranks = range(plan.mapping.world_size)
    if min(workers, len(ranks)) == 1:
        return [convert_rank(plan, rank, folder, partial(advance, rank)) for rank in ranks]
    with worker_processes(min(workers, len(ranks)), advance, _one_thread) as pool:
        jobs = [pool.submit(_convert_in_worker, plan, rank, folder) for rank in ranks]
        try:
            return [job.result() for job in jobs]
        except BrokenProcessPool as error:
            unfinished = [rank for rank, job in enumerate(jobs) if not job.done() or job.exception()]
            raise WorkerError(
                f"a convert worker died while ranks {unfinished} were open (killed, or out of memory?); "
                "nothing was published; run again with fewer --workers"
            ) from error


def _one_thread() -> None:
    torch.set_num_threads(1)  # the ranks are the parallelism


def _convert_in_worker(plan: ConvertPlan, rank: int, folder: Path) -> Written:
    return convert_rank(plan, rank, folder, partial(tell, rank))
