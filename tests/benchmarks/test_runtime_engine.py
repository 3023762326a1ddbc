"""Engines that are measured: loadable, sharing what may be shared, found again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.runtime_cases import SHAPES, Shape
from benchmarks.runtime_engine import built
from builders.engine_folder import load_engine
from builders.engine_manifest import read_engine
from builders.limits import Limits
from builders.mapping import Mapping
from builders.ops import Step

LAYOUT = Mapping(tp_size=2, pp_size=2)
LIMITS = Limits(max_batch_size=4, max_input_len=8, max_seq_len=16, max_num_tokens=64)
STEP = Step(
    positions=torch.arange(3),
    sequences=torch.zeros(3, dtype=torch.int64),
    lengths=torch.tensor([3]),
    block_table=torch.tensor([[0]]),
    wanted=torch.tensor([2]),
)


def made(shape: Shape, folder: Path, mapping: Mapping = LAYOUT) -> Path:
    (found,) = built(shape, mapping, LIMITS, "cpu", folder)
    return found.folder


def test_ranks_of_one_stage_share_a_file(tmp_path: Path) -> None:
    engine = made(SHAPES["tiny"], tmp_path)
    inodes = [(engine / f"rank{rank}.safetensors").stat().st_ino for rank in range(4)]
    assert inodes[0] == inodes[1] != inodes[2] == inodes[3]
    assert read_engine(engine).limits == LIMITS


def test_it_runs(tmp_path: Path) -> None:
    engine = made(SHAPES["tiny"], tmp_path, Mapping())
    with torch.no_grad():
        logits = load_engine(engine, 0, num_blocks=1).forward(torch.tensor([3, 1, 2]), STEP)
    assert logits.shape == (1, 512)
    assert logits.isfinite().all() and logits.std() > 0


def test_weights_are_found_again_and_not_those_of_another_model(tmp_path: Path) -> None:
    shape = SHAPES["tiny"]
    content = (made(shape, tmp_path) / "rank0.safetensors").read_bytes()
    again = (made(shape, tmp_path) / "rank0.safetensors").read_bytes()
    assert again == content, "random weights would differ"
    deeper = replace(shape, config={**shape.config, "num_hidden_layers": 4})
    assert (made(deeper, tmp_path) / "rank0.safetensors").stat().st_size > 1.2 * len(content)
