"""Engines for CUDA devices: built where there is none, refused where one is needed, run where one is."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from builders.checkpoint import read_manifest
from builders.cuda.load import choices_of
from builders.cuda.plans import KernelUnit, plan_cuda
from builders.cuda.target import CAPABILITIES, Target, local_target
from builders.cuda.unit import CHOICE
from builders.engine_folder import load_engine
from builders.engine_manifest import TorchManifest, Unit, read_engine, unit_folder
from builders.errors import ArtifactError, EngineError
from builders.limits import Limits
from builders.tensor_file import Written
from cluster.build import BuildResult
from cluster.inspect_engine import inspect_engine
from tests.cluster.test_build import make
from tests.cluster.test_convert import ROOT, content, go
from tests.cuda_ranks import following, prompts
from tests.oracle import mixtral, random_model
from tests.tiny import save_llama

pytest.importorskip("triton", reason="triton is not installed")

LIMITS = {"max_batch_size": 4, "max_input_len": 16, "max_seq_len": 32, "tokens_per_block": 16}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    go(save_llama(tmp_path / "model"), tmp_path / "checkpoint", dtype="bfloat16")
    return tmp_path / "checkpoint"


def build(checkpoint: Path, out: Path, target: str, **changes: int | None) -> BuildResult:
    return make(checkpoint, out, no_compile=False, target=target, **{**LIMITS, **changes})


ABSENT = next(name for name in CAPABILITIES if (here := local_target()) is None or here.name != name)


@pytest.mark.slow
def test_a_device_that_is_not_here(checkpoint: Path, tmp_path: Path) -> None:
    first = build(checkpoint, tmp_path / "engine", ABSENT, workers=2)
    second = build(checkpoint, tmp_path / "again", ABSENT, workers=1)
    assert (first.num_built, second.num_built) == (first.num_units, 0)
    assert content(tmp_path / "engine") == content(tmp_path / "again")
    more = build(checkpoint, tmp_path / "more", ABSENT, max_batch_size=8)
    assert 0 < more.num_built < more.num_units
    found = inspect_engine(tmp_path / "engine", verify=True)
    assert found["timed_on"] is None and found["kernels"] == first.num_units - 4
    with pytest.raises(EngineError, match=f"cannot run here: it was built for {ABSENT}, and"):
        load_engine(tmp_path / "engine", 0, num_blocks=8)


def test_no_path_of_the_machine_in_an_engine(checkpoint: Path, tmp_path: Path) -> None:
    build(checkpoint, tmp_path / "engine", "sm80", max_batch_size=1)
    for name, data in content(tmp_path / "engine").items():
        assert str(Path(__file__).parent.parent.parent).encode() not in data, name


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{}, {"tp_size": 2, "ep_size": 2}], ids=["whole", "ep2"])
def test_experts_for_a_device_that_is_not_here(sizes: dict[str, int], tmp_path: Path) -> None:
    random_model(mixtral()).save_pretrained(tmp_path / "model")
    go(tmp_path / "model", tmp_path / "checkpoint", dtype="bfloat16", **sizes)
    made = build(tmp_path / "checkpoint", tmp_path / "engine", ABSENT, max_batch_size=1)
    assert made.num_built == made.num_units


@pytest.mark.parametrize(("window", "kernels"), [(31, {31}), (32, {0}), (None, {0})])
def test_kernels_have_the_window(checkpoint: Path, window: int | None, kernels: set[int]) -> None:
    limits = Limits(**LIMITS, max_attention_window_size=window)
    plan = plan_cuda(read_manifest(checkpoint), limits, Target(capability=90, device=None))
    chosen = [unit.plan.site for unit in plan.kernels if isinstance(unit, KernelUnit)]
    sites = [site for site in chosen if site.op == "fused.rotate_and_attend"]
    assert {site.args[13] for site in sites} == kernels


def test_kernels_of_another_version_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    """When an engine is loaded, not by the first prompt."""
    folder = tmp_path / "engine"
    build(checkpoint, folder, "sm80", max_batch_size=1)
    manifest = read_engine(folder)
    assert isinstance(manifest, TorchManifest)
    assert len(choices_of(folder, manifest)) == len(manifest.kernels)
    older = replace(manifest, kernels=tuple(as_before(folder, unit) for unit in manifest.kernels))
    with pytest.raises(ArtifactError, match=r"its kernel tiles\.tiled is of another version.*build it again"):
        choices_of(folder, older)


def as_before(folder: Path, unit: Unit) -> Unit:
    """As it was built when kernels for prompts had one constant less."""
    file = unit_folder(folder, unit) / CHOICE
    data = file.read_text().replace('["FRESH", true], ', "").encode()
    file.unlink()  # it may be the store's too
    file.write_bytes(data)
    written = Written(name=CHOICE, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return replace(unit, files=tuple(written if one.name == CHOICE else one for one in unit.files))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_timing_takes_a_device(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no CUDA device here to time kernels on.*name a target"):
        build(checkpoint, tmp_path / "engine", "cuda")


def test_exported_graphs_are_for_the_cpu(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="--no_compile: --target sm90 takes compiled kernels"):
        make(checkpoint, tmp_path / "engine", target="sm90")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("window", [None, 4])
def test_built_and_run_here(window: int | None, checkpoint: Path, tmp_path: Path) -> None:
    build(checkpoint, tmp_path / "engine", "cuda", max_attention_window_size=window)
    make(checkpoint, tmp_path / "plain", **LIMITS, max_attention_window_size=window)
    ours = load_engine(tmp_path / "engine", 0, num_blocks=8)
    plain = load_engine(tmp_path / "plain", 0, num_blocks=8)
    step, ids = prompts([5, 9, 2], Limits(**LIMITS)), torch.randint(0, 90, (16,))
    for _ in range(3):
        here, there = ours.forward(ids, step).cpu().float(), plain.forward(ids, step)
        torch.testing.assert_close(here, there, rtol=0, atol=0.05 * there.abs().max().item())
        ids, step = there.argmax(-1), following(step)


@pytest.mark.slow
def test_programs_are_made_ready_without_a_compiler(checkpoint: Path, tmp_path: Path) -> None:
    build(checkpoint, tmp_path / "engine", ABSENT, max_batch_size=1)
    code = (
        "import sys, json\n"
        "from pathlib import Path\n"
        "from builders.cuda.executor import prepared\n"
        "from builders.cuda.load import choices_of\n"
        "from builders.engine_folder import read_program\n"
        "from builders.engine_manifest import read_engine\n"
        f"folder = Path({str(tmp_path / 'engine')!r})\n"
        "engine = read_engine(folder)\n"
        "configs = {key: choice.config for key, choice in choices_of(folder, engine).items()}\n"
        "steps = [step for unit in engine.units for step in prepared(read_program(folder, unit), configs)]\n"
        "print(sum(bool(step.configs) for step in steps))\n"
        "print([name for name in ('triton', 'torch._dynamo', 'torch._inductor') if name in sys.modules])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == "6\n[]\n"
