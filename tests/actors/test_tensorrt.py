"""A TensorRT engine that gets plans, on a TensorRT of our own: its blocks are slots."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from actors import rank_worker
from actors.cache_size import num_blocks
from actors.generator import Generator
from actors.open_generator import ends_of, planned
from actors.rank_worker import RankSetup
from actors.ranks import SoloRank
from builders.engine_manifest import TrtManifest, read_engine
from builders.trt.load import load_on
from builders.trt.plans import plan_plans
from builders.trt.runtime import TrtEngine
from builders.trt.target import TARGETS
from cluster.build import build
from cluster.build_options import BuildOptions
from cluster.progress import LineReporter
from tests.actors.scenario import LIMITS, Scenario
from tests.actors.wishes import EOS, wishes_of
from tests.cluster.test_convert import go
from tests.oracle import gpt2, llama, random_model
from tests.trt_device import Library, without_cuda

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")

MODELS = {"llama": llama(hidden_size=64), "gpt2": gpt2(n_embd=64)}
"""Tiny models whose heads TensorRT takes."""


def built(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder / "model")
    go(folder / "model", folder / "checkpoint", dtype="float32")
    options = BuildOptions(
        checkpoint_dir=folder / "checkpoint",
        output_dir=folder / "engine",
        engine="tensorrt",
        target="sm89",
        strip_plan=True,
        **vars(LIMITS),
    )
    build(options, LineReporter(io.StringIO(), as_json=False))
    (folder / "engine/generation_config.json").write_text(json.dumps({"eos_token_id": EOS}))
    return folder / "engine"


def loaded(engine: Path, rank: int, **_options: Any) -> TrtEngine:
    """As a GPU would: but its plan is the network that the plan was built from."""
    manifest = read_engine(engine)
    assert isinstance(manifest, TrtManifest)
    plans = plan_plans(
        manifest.checkpoint, engine.parent / "checkpoint", manifest.limits, TARGETS["sm89"], strip=True
    )
    library = Library(trt, plans.units[0].network(trt), None)  # type: ignore[arg-type]
    return load_on(library, engine, manifest, rank, device="cpu")


def opened(engine: Path, draft_tokens: int) -> Generator:
    manifest, ends = read_engine(engine), ends_of(engine)
    slots = num_blocks(manifest, None, 0.9)
    ranks = SoloRank(RankSetup(engine_dir=engine, rank=0, num_blocks=slots, ends=ends), device="cpu")
    return planned(ranks, slots, manifest, ends, draft_tokens=draft_tokens)


@pytest.mark.parametrize(("name", "draft_tokens"), [("llama", 0), ("llama", 3), ("gpt2", 0)])
def test_everyone_gets_what_transformers_gives(
    name: str, draft_tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_cuda(monkeypatch)
    monkeypatch.setattr(rank_worker, "load_engine", loaded)
    model = random_model(MODELS[name])
    with opened(built(model, tmp_path), draft_tokens) as generator:
        scenario = Scenario(generator, wishes_of(model))
        scenario.run()
    scenario.check(model)
