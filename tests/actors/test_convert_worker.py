"""Workers: all ranks, in their order; a worker that dies or raises ends the run with its cause."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from actors.convert_worker import run_ranks
from builders.convert import ConvertPlan
from builders.errors import SourceError, WorkerError
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


def test_killed_worker_is_named(tmp_path: Path) -> None:
    plan = plan_of(
        save_llama(tmp_path / "model", hidden_size=512, intermediate_size=8192, num_hidden_layers=8)
    )
    killer = threading.Thread(target=kill_first_child)
    killer.start()
    with pytest.raises(WorkerError, match="a convert worker died while ranks"):
        run_ranks(plan, tmp_path, workers=2, advance=lambda _rank, _size: None)
    killer.join()


def kill_first_child() -> None:
    while not multiprocessing.active_children():
        time.sleep(0.01)
    pid = multiprocessing.active_children()[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_error_in_a_worker_is_its_own(tmp_path: Path, workers: int) -> None:
    plan = plan_of(save_llama(tmp_path / "model"))
    (tmp_path / "model/model.safetensors").write_bytes(b"gone")
    with pytest.raises(SourceError, match="not a readable safetensors file"):
        run_ranks(plan, tmp_path, workers=workers, advance=lambda _rank, _size: None)
