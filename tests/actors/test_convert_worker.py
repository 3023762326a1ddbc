"""Convert workers: all ranks, in their order, and an error is its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actors.convert_worker import RankJob, convert_ranks
from actors.executor import Unheard
from actors.processes import Processes
from builders.convert import ConvertPlan
from builders.errors import SourceError
from builders.mapping import Mapping
from builders.sources.hf import open_folder
from builders.sources.pieces import locate
from tests.tiny import save_llama


def plan_of(model: Path) -> ConvertPlan:
    opened = open_folder(model)
    return ConvertPlan(
        spec=opened.spec,
        mapping=Mapping(tp_size=2, pp_size=2),
        dtype=torch.float32,
        located=locate(opened.family, opened.spec, opened.index),
    )


def jobs_of(plan: ConvertPlan, folder: Path) -> list[RankJob]:
    return [RankJob(plan=plan, rank=rank, place=folder) for rank in range(plan.mapping.world_size)]


@pytest.mark.parametrize("workers", [1, 3])
def test_progress_adds_up_for_every_rank(tmp_path: Path, workers: int) -> None:
    heard: dict[int, int] = {}
    plan = plan_of(save_llama(tmp_path / "model"))
    (tmp_path / "out").mkdir()

    class Listener(Unheard):
        def advanced(self, job: int, amount: int) -> None:
            heard[job] = heard.get(job, 0) + amount

    written = convert_ranks(jobs_of(plan, tmp_path / "out"), Processes(workers=workers), Listener())
    assert [file.name for file in written] == [f"rank{rank}.safetensors" for rank in range(4)]
    for rank, file in enumerate(written):
        assert 0 < heard[rank] < file.num_bytes == (tmp_path / "out" / file.name).stat().st_size


@pytest.mark.parametrize("workers", [1, 2])
def test_error_in_a_worker_is_its_own(tmp_path: Path, workers: int) -> None:
    plan = plan_of(save_llama(tmp_path / "model"))
    (tmp_path / "model/model.safetensors").write_bytes(b"gone")
    with pytest.raises(SourceError, match="not a readable safetensors file"):
        convert_ranks(jobs_of(plan, tmp_path), Processes(workers=workers), Unheard())
