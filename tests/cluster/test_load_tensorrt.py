"""A TensorRT engine from its folder, on a TensorRT of our own: rank by rank, it is the decoder."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from builders.checkpoint import load_rank, read_manifest
from builders.engine_folder import load_engine
from builders.engine_manifest import TrtManifest, read_engine, unit_folder
from builders.errors import ArtifactError, EngineError
from builders.limits import Limits
from builders.ops import Step
from builders.parallel import parallelize
from builders.store import Store
from builders.trt import load, plans
from builders.trt.facts import PLAN
from builders.trt.load import load_on, obstacle
from builders.trt.network import Network
from builders.trt.plans import PlanUnit, plan_plans, timing_cache_name
from builders.trt.target import TARGETS, Target
from cluster.build import build
from cluster.build_options import BuildOptions
from cluster.progress import LineReporter
from tests.builders.test_trt_build import TimingBuilder
from tests.builders.test_trt_network import STEPS
from tests.cluster.test_convert import go
from tests.sim import Member
from tests.tiny import save_llama
from tests.trt_device import Library, without_cuda
from tests.trt_ranks import LIMITS, Lockstep, Runner
from tests.trt_steps import step_of

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")


def built(tmp_path: Path, *, strip: bool, limits: Limits = LIMITS, **layout: Any) -> Path:
    """A tiny LLaMA's engine, by the command; its checkpoint lies beside it."""
    go(save_llama(tmp_path / "model"), tmp_path / "checkpoint", dtype="float32", **layout)
    options = BuildOptions(
        checkpoint_dir=tmp_path / "checkpoint",
        output_dir=tmp_path / "engine",
        engine="tensorrt",
        target="sm89",
        strip_plan=strip,
        **vars(limits),
    )
    build(options, LineReporter(io.StringIO(), as_json=False))
    return tmp_path / "engine"


def manifest_of(engine: Path) -> TrtManifest:
    manifest = read_engine(engine)
    assert isinstance(manifest, TrtManifest)
    return manifest


def loaded(engine: Path, rank: int, member: Member, *, strip: bool) -> Runner:
    """As a GPU would: but its plan is the network that the plan was built from."""
    manifest = manifest_of(engine)
    checkpoint = engine.parent / "checkpoint"
    plan = plan_plans(manifest.checkpoint, checkpoint, manifest.limits, TARGETS["sm89"], strip=strip)
    unit = plan.units[plan.ranks[rank]]
    assert unit.recipe.key == manifest.units[manifest.ranks[rank]].key
    with unit.opened_weights(Store(engine.parent / ".rankforge-store")) as weights:
        library = Library(trt, unit.network(trt, weights), member)
    return load_on(library, engine, manifest, rank, device="cpu").forward


def decoder(checkpoint: Path, rank: int, window: int | None = None) -> Runner:
    made, blocks = load_rank(checkpoint, rank), LIMITS.max_batch_size
    for layer in made.layers.values():
        layer.attn.spec = replace(layer.attn.spec, sliding_window=window)
    mapping = manifest_of(checkpoint.parent / "engine").checkpoint.mapping
    parallelize(made, mapping, mapping.place(rank))
    caches = made.new_caches(blocks, LIMITS.max_seq_len)

    def run(x: Tensor, step: Step) -> Tensor:
        return made(x, step, caches)

    return run


@pytest.mark.parametrize("strip", [False, True])
@pytest.mark.parametrize("layout", [{}, {"tp_size": 2, "pp_size": 2}], ids=["1", "tp2pp2"])
def test_loaded_engine_is_the_decoder(
    strip: bool, layout: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_cuda(monkeypatch)
    engine = built(tmp_path, strip=strip, **layout)
    mapping = manifest_of(engine).checkpoint.mapping
    found = Lockstep.of(mapping, lambda rank, member: loaded(engine, rank, member, strip=strip))
    truth = Lockstep.of(mapping, lambda rank, _member: decoder(tmp_path / "checkpoint", rank))
    for parts, wanted in STEPS:
        step = step_of(parts, wanted)
        ids = torch.arange(len(step.positions)) * 7 % 101
        expected = truth.forward(ids, step)
        torch.testing.assert_close(found.forward(ids, step), expected, rtol=1e-4, atol=1e-4)


def test_an_engine_with_a_window_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_cuda(monkeypatch)
    window = 4
    engine = built(tmp_path, strip=True, limits=replace(LIMITS, max_attention_window_size=window), pp_size=2)
    mapping = manifest_of(engine).checkpoint.mapping
    found = Lockstep.of(mapping, lambda rank, member: loaded(engine, rank, member, strip=True))
    truth, whole = (
        Lockstep.of(mapping, lambda rank, _member, seen=seen: decoder(tmp_path / "checkpoint", rank, seen))
        for seen in (window, None)
    )
    differences = []
    for parts, wanted in STEPS:
        step = step_of(parts, wanted)
        ids = torch.arange(len(step.positions)) * 7 % 101
        expected = truth.forward(ids, step)
        torch.testing.assert_close(found.forward(ids, step), expected, rtol=1e-4, atol=1e-4)
        differences.append((whole.forward(ids, step) - expected).abs().max().item())
    assert max(differences) > 1e-2


def test_changed_plan_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    engine = built(tmp_path, strip=True)
    manifest = manifest_of(engine)
    file = unit_folder(engine, manifest.units[0]) / PLAN
    data = bytearray(file.read_bytes())
    file.unlink()
    data[100] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"engine\.plan: missing, or not the file that was built"):
        load_on(None, engine, manifest, 0, device="cpu")


def test_what_keeps_an_engine_from_running_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = built(tmp_path, strip=True)
    manifest = manifest_of(engine)
    monkeypatch.setattr(load, "local_gpu", lambda: "sm90")
    assert obstacle(manifest) == "it was built for sm89, and this GPU is sm90"
    monkeypatch.setattr(load, "local_gpu", lambda: "sm89")
    assert obstacle(manifest) is None
    with pytest.raises(EngineError, match=r"num_blocks=5: .* the 4 slots it was built for, of 48 tokens"):
        load_engine(engine, 0, num_blocks=5)
    older = replace(manifest, versions={"tensorrt_rtx": "1.0"})
    assert (
        obstacle(older)
        == f"it was built with tensorrt_rtx 1.0, and this is {trt.__version__}; build it again"
    )
    monkeypatch.setattr(load, "is_installed", lambda _library: False)
    assert obstacle(manifest) == "tensorrt_rtx is not installed here"


class Timed(Target):
    """A data-centre GPU whose library is at hand."""

    @property
    def is_timed(self) -> bool:
        return True


def timed_units(tmp_path: Path) -> list[PlanUnit]:
    """Two stages, whose plans differ."""
    go(save_llama(tmp_path / "model"), tmp_path / "checkpoint", dtype="float16", pp_size=2)
    checkpoint = read_manifest(tmp_path / "checkpoint")
    target = Timed(**{**vars(TARGETS["sm80"]), "gpu": "NVIDIA A10G/24 GB"})
    return list(plan_plans(checkpoint, tmp_path / "checkpoint", LIMITS, target, strip=True).units)


def test_timing_cache_is_kept_in_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bytes] = []
    plain = plans.lower

    def lower(*args: Any) -> Network:
        network = plain(*args)
        return replace(network, builder=TimingBuilder(network.builder, given))

    monkeypatch.setattr(plans, "lower", lower)
    store, units = Store(tmp_path / "store"), timed_units(tmp_path)
    for unit in units:
        store.get_or_build(
            unit.recipe, lambda folder, unit=unit: unit.build(folder, store, lambda _share: None)
        )
    assert given == [b"", b"learned"]
    name = timing_cache_name(units[0].target)
    assert name == f"timing-tensorrt_rtx-{trt.__version__}-sm80-NVIDIA-A10G-24-GB"
    assert store.read_blob(name) == b"learnedlearned"
