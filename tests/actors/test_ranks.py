"""Ranks without Ray, as plain processes: on CPUs with gloo, on GPUs with NCCL and symmetric memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from actors.communicators.links import Kind
from actors.communicators.symmetric import ENVIRONMENT
from actors.open_generator import planned
from builders.engine_manifest import read_engine
from tests.actors.piped_ranks import PipedRanks
from tests.actors.scenario import NUM_BLOCKS, Scenario
from tests.actors.subjects import Subject
from tests.actors.wishes import EOS
from tests.cuda_engines import LAYOUTS, CudaEngines, model_of

on_gpus = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA devices"),
]
CASES = [
    pytest.param("gloo", "pp2", 0, id="gloo-pp2"),  # tests/actors/on_ray has the other layouts
    *(
        pytest.param(kind, layout, drafts, marks=on_gpus, id=f"{kind}-{layout}-{drafts}")
        for kind in ("nccl", "symmetric")
        for layout in LAYOUTS
        for drafts in ((0, 3) if layout in ("1", "tp2") else (0,))
        if (kind, layout) != ("symmetric", "1")
    ),
]


@pytest.mark.parametrize(("kind", "layout", "draft_tokens"), CASES)
def test_everyone_gets_what_transformers_gives(
    kind: Kind,
    layout: str,
    draft_tokens: int,
    subjects: Callable[[str], Subject],
    cuda_engines: CudaEngines,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mapping = LAYOUTS[layout]
    if kind != "gloo" and mapping.world_size > torch.cuda.device_count():
        pytest.skip(f"needs {mapping.world_size} CUDA devices")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    subject = subjects(model_of(layout))
    folder = subject.engine(mapping, tmp_path / "made") if kind == "gloo" else cuda_engines(layout)
    ranks = PipedRanks(folder, kind, num_blocks=NUM_BLOCKS, ends=(EOS,))
    with planned(ranks, NUM_BLOCKS, read_engine(folder), (EOS,), draft_tokens=draft_tokens) as generator:
        scenario = Scenario(generator, subject.wishes)
        scenario.run()
    scenario.check(subject.model)
    scenario.check_variety()
