"""`rankforge build --engine tensorrt` as a whole: plans for absent GPUs, found again and shared."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from builders.engine_folder import load_engine
from builders.engine_manifest import TrtManifest, read_engine
from builders.errors import ArtifactError, EngineError
from cluster.build import BuildResult, build
from cluster.build_options import BuildOptions
from cluster.inspect_engine import inspect_engine
from cluster.progress import LineReporter, Unit
from tests.cluster.test_cli import one_line_error, rankforge
from tests.cluster.test_convert import content, go
from tests.oracle import gpt2, random_model
from tests.tiny import save_llama

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")

SMALL = {"max_batch_size": 4, "max_input_len": 16, "max_seq_len": 48, "max_num_tokens": 64}


def make(checkpoint: Path, out: Path, **changes: Any) -> BuildResult:
    settings = {"engine": "tensorrt", "target": "sm89", **SMALL, **changes}
    options = BuildOptions(checkpoint_dir=checkpoint, output_dir=out, **settings)
    return build(options, LineReporter(io.StringIO(), as_json=False))


def save(name: str, folder: Path, **changes: Any) -> Path:
    """A tiny model whose heads TensorRT takes."""
    if name == "llama":
        return save_llama(folder, **changes)
    random_model(gpt2(n_embd=32)).save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Two stages of two ranks."""
    go(save("llama", tmp_path / "model"), tmp_path / "checkpoint", tp_size=2, pp_size=2, dtype="float16")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("tp_size", [1, 2])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_second_build_builds_nothing(name: str, tp_size: int, tmp_path: Path) -> None:
    go(save(name, tmp_path / "model"), tmp_path / "checkpoint", tp_size=tp_size, dtype="float16")
    first = make(tmp_path / "checkpoint", tmp_path / "engine")
    assert (first.num_ranks, first.num_units, first.num_built) == (tp_size, tp_size, tp_size)
    second = make(tmp_path / "checkpoint", tmp_path / "other")
    assert (second.num_built, second.key) == (0, first.key)
    assert content(tmp_path / "engine") == content(tmp_path / "other")
    assert make(tmp_path / "checkpoint", tmp_path / "engine").reused


def test_stripped_plan_is_shared_by_equal_ranks(checkpoint: Path, tmp_path: Path) -> None:
    result = make(checkpoint, tmp_path / "engine", strip_plan=True)
    assert (result.num_ranks, result.num_units) == (4, 2)
    engine = read_engine(tmp_path / "engine")
    assert isinstance(engine, TrtManifest) and engine.stripped and engine.ranks == (0, 0, 1, 1)
    files = [folder / "rank3.safetensors" for folder in (checkpoint, tmp_path / "engine")]
    assert os.path.samefile(*files)


def test_plans_with_weights_need_no_rank_files(checkpoint: Path, tmp_path: Path) -> None:
    assert make(checkpoint, tmp_path / "engine").num_units == 4
    assert read_engine(tmp_path / "engine").ranks == (0, 1, 2, 3)
    assert not list((tmp_path / "engine").glob("*.safetensors"))
    assert len(list((tmp_path / "engine").glob("programs/*/engine.plan"))) == 4


def test_other_weights_are_another_plan_only_where_it_holds_them(tmp_path: Path) -> None:
    for seed in (0, 1):
        model = save("llama", tmp_path / f"model{seed}", seed=seed)
        go(model, tmp_path / f"checkpoint{seed}", dtype="float16")
    built = [
        make(tmp_path / f"checkpoint{seed}", tmp_path / f"engine{seed}{strip}", strip_plan=strip).num_built
        for strip in (False, True)
        for seed in (0, 1)
    ]
    assert built == [1, 1, 1, 0]


def test_limits_rebuild_only_what_depends_on_them(tmp_path: Path) -> None:
    go(save("llama", tmp_path / "model"), tmp_path / "checkpoint", dtype="float16")

    def num_built(**changes: int) -> int:
        return make(
            tmp_path / "checkpoint", tmp_path / "engine", strip_plan=True, overwrite=True, **changes
        ).num_built

    assert num_built() == 1
    # Blocks are the torch engine's, and a prompt is what limits a prefill, not the tokens of a step.
    assert [num_built(tokens_per_block=8), num_built(max_num_tokens=128)] == [0, 0]
    assert read_engine(tmp_path / "engine").limits.max_num_tokens == 128
    assert [num_built(max_seq_len=64), num_built(max_batch_size=8), num_built(max_input_len=8)] == [1, 1, 1]
    # Beams are sequences too.
    assert num_built(max_batch_size=4, max_beam_width=2) == 0


def test_weights_made_up_at_load(tmp_path: Path) -> None:
    go(save("llama", tmp_path / "model"), tmp_path / "checkpoint", load_format="random", dtype="float16")
    assert make(tmp_path / "checkpoint", tmp_path / "engine").num_built == 1
    go(tmp_path / "model", tmp_path / "checkpoint2", load_format="random", seed=7, dtype="float16")
    assert make(tmp_path / "checkpoint2", tmp_path / "engine2").num_built == 1
    assert make(tmp_path / "checkpoint2", tmp_path / "engine3", strip_plan=True).num_built == 1


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "target", [pytest.param("sm80", marks=SLOW), "sm89", pytest.param("sm120", marks=SLOW)]
)
def test_every_target_has_its_own_plans(target: str, tmp_path: Path) -> None:
    go(save("llama", tmp_path / "model"), tmp_path / "checkpoint", dtype="float16")
    make(tmp_path / "checkpoint", tmp_path / "engine", target="sm86", strip_plan=True)
    result = make(tmp_path / "checkpoint", tmp_path / target, target=target, strip_plan=True)
    assert (result.num_units, result.num_built) == (1, 1)
    assert read_engine(tmp_path / target).target == target


class Heard:
    """What a reporter is told."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.steps: dict[int, list[int]] = {}

    def start(self, sizes: Any, label: str, unit: Unit = "bytes", numbers: Any = ()) -> None:
        assert unit == "percent" and label.startswith("build ")
        self.sizes = list(sizes)

    def advance(self, part: int, amount: int) -> None:
        self.steps.setdefault(part, []).append(amount)

    def done(self, part: int) -> None: ...

    def lost(self, part: int, what: str) -> None: ...

    def finish(self) -> None: ...


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_of_every_plan_is_heard(workers: int, checkpoint: Path, tmp_path: Path) -> None:
    settings = {"engine": "tensorrt", "target": "sm89", "strip_plan": True, "workers": workers, **SMALL}
    heard = Heard()
    build(BuildOptions(checkpoint_dir=checkpoint, output_dir=tmp_path / "engine", **settings), heard)
    assert heard.sizes == [100, 100]
    for steps in (heard.steps[0], heard.steps[1]):
        assert len(steps) > 10 and sum(steps) == 100
    again = Heard()
    build(BuildOptions(checkpoint_dir=checkpoint, output_dir=tmp_path / "other", **settings), again)
    assert (again.sizes, again.steps) == ([], {}), "what is there is no work"


def test_changed_weights_never_get_into_the_store(checkpoint: Path, tmp_path: Path) -> None:
    file = checkpoint / "rank0.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.unlink()  # it is a link to nobody else's, but may be one
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match="its content is not what config"):
        make(checkpoint, tmp_path / "engine")


@pytest.mark.parametrize("strip_plan", [False, True])
def test_inspect_says_what_a_plan_takes(strip_plan: bool, tmp_path: Path) -> None:
    go(save("llama", tmp_path / "model"), tmp_path / "checkpoint", tp_size=2, dtype="bfloat16")
    make(tmp_path / "checkpoint", tmp_path / "engine", strip_plan=strip_plan)
    found = inspect_engine(tmp_path / "engine", verify=True)
    assert (found["kind"], found["target"], found["library"]) == ("tensorrt engine", "sm89", "tensorrt_rtx")
    assert (found["stripped"], found["slots"]) == (strip_plan, 4)
    assert found["runs_here"] == "no: it was built for sm89, and no GPU is here"
    tensors = {tensor["name"]: tensor for tensor in found["plans"][0]["tensors"]}
    assert tensors["ids"] == {"name": "ids", "mode": "input", "dtype": "int32", "shape": ("batch", "tokens")}
    assert tensors["cache.2.v"]["dtype"] == "bfloat16" and "cache.3.v" not in tensors
    assert tensors["cache.2.v.updated"]["shape"] == ("batch", "1", "48", "8")
    assert tensors["logits"] == {
        "name": "logits", "mode": "output", "dtype": "float32", "shape": ("batch", "101")
    }  # fmt: skip
    # Embedding, five of each layer, norm, head; frequencies.
    assert found["plans"][0]["num_weight_inputs"] == (19 + 3 if strip_plan else 0)
    rank = found["ranks"][1]
    assert rank["cache_bytes_per_token"] == 2 * 3 * 8 * 2 and rank["workspace_bytes"] > 0
    assert rank["full_cache_bytes"] == rank["cache_bytes_per_token"] * 48 * 4


def test_plan_does_not_load_where_its_gpu_is_not(checkpoint: Path, tmp_path: Path) -> None:
    make(checkpoint, tmp_path / "engine", strip_plan=True)
    with pytest.raises(EngineError, match="cannot run here: it was built for sm89, and no GPU is here"):
        load_engine(tmp_path / "engine", 0, num_blocks=1)


def test_changed_facts_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    make(checkpoint, tmp_path / "engine", strip_plan=True)
    file = next((tmp_path / "engine").glob("programs/*/plan.json"))
    file.unlink()
    file.write_text("[")
    with pytest.raises(ArtifactError, match=r"plan\.json: missing, or not the file that was built"):
        inspect_engine(tmp_path / "engine", verify=False)


def test_unknown_kind_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    make(checkpoint, tmp_path / "engine", strip_plan=True)
    file = tmp_path / "engine" / "config.json"
    file.write_text(file.read_text().replace('"kind": "tensorrt"', '"kind": "abacus"'))
    with pytest.raises(ArtifactError, match=r"of kind 'abacus'; the kinds known here are torch, tensorrt;"):
        read_engine(tmp_path / "engine")
    # Nor is it taken for something that may be replaced.
    with pytest.raises(ArtifactError, match="of kind 'abacus'"):
        make(checkpoint, tmp_path / "engine", strip_plan=True)


CURRENT = "its targets are current, sm75, sm80, sm86, sm89, sm120, sm121"
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"target": None}, "--target=current: no GPU here; name what to build for: sm75, sm80"),
    ({"target": "cpu"}, f"--target=cpu: not a target of --engine tensorrt; {CURRENT}"),
    ({"target": "sm90"}, f"--target=sm90: not a target of --engine tensorrt; {CURRENT}"),
    ({"target": "sm75"}, "--target=sm75: the model is bfloat16; Turing has no bfloat16; use --dtype float16"),
    ({"trt_library": "tensorrt"}, "--trt_library tensorrt builds for the GPU at hand"),
    ({"no_compile": True}, "--no_compile: only for --engine torch"),
    ({"max_seq_len": 40}, "--max_seq_len=40: a slot of the cache must begin"),
    (
        {"engine": "torch", "target": "sm75"},
        "--target=sm75: not a target of --engine torch; its targets are cpu",
    ),
    ({"engine": "torch", "target": "cpu", "strip_plan": True}, "--strip_plan: only for --engine tensorrt"),
    (
        {"engine": "torch", "target": "cpu", "trt_library": "tensorrt"},
        "--trt_library: only for --engine tensorrt",
    ),
]


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    go(save("llama", tmp_path / "model"), tmp_path / "checkpoint", dtype="bfloat16")
    for changes, words in REFUSED:
        with pytest.raises(EngineError, match=re.escape(words)):
            make(tmp_path / "checkpoint", tmp_path / "engine", **changes)
    assert not (tmp_path / "engine").exists() and not (tmp_path / ".rankforge-store").exists()


def test_refusal_is_one_line_in_the_shell(checkpoint: Path, tmp_path: Path) -> None:
    places = ("--checkpoint_dir", checkpoint, "--output_dir", tmp_path / "engine")
    refused = rankforge("build", *places, "--engine=tensorrt", "--target=hopper")
    assert f"--target=hopper: not a target of --engine tensorrt; {CURRENT}" in one_line_error(refused)


def test_model_that_tensorrt_cannot_attend_with(tmp_path: Path) -> None:
    go(save("llama", tmp_path / "model", head_dim=12), tmp_path / "checkpoint", dtype="float16")
    with pytest.raises(EngineError, match="head_dim=12: TensorRT's attention needs a multiple of 8"):
        make(tmp_path / "checkpoint", tmp_path / "engine")


def test_commands_from_the_shell(tmp_path: Path) -> None:
    model, engine = save("gpt2", tmp_path / "model"), tmp_path / "engine"
    go(model, tmp_path / "checkpoint", tp_size=2, dtype="float16")
    flags = ["--engine", "tensorrt", "--target=sm120", "--strip-plan", "--workers", 2, "--json"]
    limits = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    made = rankforge(
        "build", "--checkpoint-dir", tmp_path / "checkpoint", "--output-dir", engine, *flags, *limits
    )
    result = json.loads(made.stdout)
    assert (result["num_ranks"], result["num_units"], result["num_built"]) == (2, 1, 1), made.stderr
    progress = [json.loads(line) for line in made.stderr.splitlines()]
    assert progress[0]["units"] == 1 and progress[-1]["done"] == 100
    text = rankforge("inspect", engine).stdout
    for words in (
        "tensorrt engine",
        "sm120, plans of tensorrt_rtx",
        "no GPU is here",
        "weights and constants",
    ):
        assert words in text
    assert "tensorrt-plan" in rankforge("store", "list", "--store_dir", tmp_path / ".rankforge-store").stdout
