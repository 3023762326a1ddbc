"""Convert workers: all ranks, in their order, and an error is its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actors.convert_worker import run_ranks
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


@pytest.mark.parametrize("workers", [1, 3])
def test_progress_adds_up_for_every_rank(tmp_path: Path, workers: int) -> None:
    heard: dict[int, int] = {}
    plan = plan_of(save_llama(tmp_path / "model"))
    (tmp_path / "out").mkdir()
    advance = lambda rank, size: heard.update({rank: heard.get(rank, 0) + size})  # noqa: E731
    written = run_ranks(plan, tmp_path / "out", workers=workers, advance=advance)
    assert [file.name for file in written] == [f"rank{rank}.safetensors" for rank in range(4)]
    for rank, file in enumerate(written):
        assert 0 < heard[rank] < file.num_bytes == (tmp_path / "out" / file.name).stat().st_size


@pytest.mark.parametrize("workers", [1, 2])
def test_error_in_a_worker_is_its_own(tmp_path: Path, workers: int) -> None:
    plan = plan_of(save_llama(tmp_path / "model"))
    (tmp_path / "model/model.safetensors").write_bytes(b"gone")
    with pytest.raises(SourceError, match="not a readable safetensors file"):
        run_ranks(plan, tmp_path, workers=workers, advance=lambda _rank, _size: None)
