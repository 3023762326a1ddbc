"""`rankforge build` as a whole: shared units, found again, published whole; and looking at what it made."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.config_file import to_json
from builders.engine import TorchEngine
from builders.engine_folder import load_engine, obstacle
from builders.engine_manifest import TorchManifest, read_engine
from builders.errors import ArtifactError, EngineError, LayoutError
from builders.ops import Step
from cluster.build import BuildResult, build
from cluster.build_options import BuildOptions
from cluster.inspect_engine import inspect_engine
from cluster.progress import LineReporter
from cluster.store import listing, prune, verify
from tests.cluster.test_cli import rankforge
from tests.cluster.test_convert import content, go
from tests.tiny import save_llama

SILENT = LineReporter(io.StringIO(), as_json=False)


def make(checkpoint: Path, out: Path, **changes: Any) -> BuildResult:
    options = BuildOptions(checkpoint_dir=checkpoint, output_dir=out, **{"no_compile": True, **changes})
    return build(options, SILENT)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    go(save_llama(tmp_path / "model"), tmp_path / "checkpoint", tp_size=2, pp_size=2)
    return tmp_path / "checkpoint"


def test_engine_is_whole_and_second_build_finds_everything(checkpoint: Path, tmp_path: Path) -> None:
    first = make(checkpoint, tmp_path / "engine")
    assert (first.num_ranks, first.num_programs, first.num_units, first.num_built) == (4, 2, 4, 4)
    second = make(checkpoint, tmp_path / "other")
    assert (second.num_built, second.key) == (0, first.key)
    assert content(tmp_path / "engine") == content(tmp_path / "other")
    assert make(checkpoint, tmp_path / "engine").reused
    assert sorted(file.name for file in tmp_path.iterdir() if file.name.startswith(".")) == [
        ".rankforge-store"
    ]


def test_weights_are_shared_with_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    make(checkpoint, tmp_path / "engine")
    files = [folder / "rank3.safetensors" for folder in (checkpoint, tmp_path / "engine")]
    assert os.path.samefile(*files)


def test_stages_pass_hidden_states_on(checkpoint: Path, tmp_path: Path) -> None:
    """The last stage of an engine needs what the first gives."""
    go(tmp_path / "model", tmp_path / "pp3", pp_size=3)
    make(tmp_path / "pp3", tmp_path / "engine")
    step = Step(
        positions=torch.arange(4),
        sequences=torch.zeros(4, dtype=torch.int64),
        lengths=torch.tensor([4]),
        block_table=torch.tensor([[0]]),
        wanted=torch.tensor([3]),
    )
    x = torch.tensor([5, 6, 7, 8])
    for rank in range(3):
        x = load_engine(tmp_path / "engine", rank, num_blocks=1).forward(x, step)
    assert x.shape == (1, 101) and x.isfinite().all()


def test_other_limits_are_another_engine(checkpoint: Path, tmp_path: Path) -> None:
    make(checkpoint, tmp_path / "engine")
    with pytest.raises(ArtifactError, match="another engine; add --overwrite"):
        make(checkpoint, tmp_path / "engine", max_batch_size=8)
    changed = make(checkpoint, tmp_path / "engine", max_batch_size=8, overwrite=True)
    assert (changed.num_built, changed.reused) == (0, False)


def test_a_window_is_another_engine_and_is_shown(checkpoint: Path, tmp_path: Path) -> None:
    plain = make(checkpoint, tmp_path / "engine")
    windowed = make(checkpoint, tmp_path / "windowed", max_attention_window_size=5)
    assert (windowed.num_built, windowed.key == plain.key) == (1, False)
    found = inspect_engine(tmp_path / "windowed", verify=True)
    assert found["limits"]["max_attention_window_size"] == 5
    shown = [rankforge("inspect", tmp_path / name).stdout for name in ("engine", "windowed")]
    assert ["max_attention_window_size" in text for text in shown] == [False, True]


def test_an_engine_that_knows_of_no_window_is_read(checkpoint: Path, tmp_path: Path) -> None:
    made = make(checkpoint, tmp_path / "engine")
    file = tmp_path / "engine/config.json"
    data = json.loads(file.read_text())
    del data["limits"]["max_attention_window_size"]
    file.write_text(json.dumps(data))
    assert read_engine(tmp_path / "engine").key == made.key


def test_foreign_folder_is_never_touched(checkpoint: Path, tmp_path: Path) -> None:
    before = content(checkpoint)
    with pytest.raises(ArtifactError, match="not an engine of ours"):
        make(checkpoint, checkpoint, overwrite=True)
    assert content(checkpoint) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_batch_size": 0}, "--max_batch_size=0"),
        ({"max_input_len": 4096}, "longer than --max_seq_len"),
        ({"max_num_tokens": 4}, "every sequence of a batch takes a token"),
        ({"max_attention_window_size": 0}, "--max_attention_window_size=0: must be at least 1"),
    ],
)
def test_limits_that_make_no_sense(checkpoint: Path, tmp_path: Path, changes: Any, words: str) -> None:
    with pytest.raises(LayoutError, match=words):
        make(checkpoint, tmp_path / "engine", **changes)


def test_damaged_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "rank1.safetensors").write_bytes(b"short")
    with pytest.raises(ArtifactError, match=r"config\.json says"):
        make(checkpoint, tmp_path / "engine")


@pytest.mark.slow
def test_compiled_by_workers(checkpoint: Path, tmp_path: Path) -> None:
    result = make(checkpoint, tmp_path / "engine", no_compile=False, workers=2)
    assert result.num_built == 4
    found = inspect_engine(tmp_path / "engine", verify=True)
    assert (found["runs_here"], found["compiled"], len(found["ranks"])) == ("yes", True, 4)


def test_engine_of_another_torch_does_not_run_here(checkpoint: Path, tmp_path: Path) -> None:
    make(checkpoint, tmp_path / "engine")
    engine = read_engine(tmp_path / "engine")
    assert isinstance(engine, TorchManifest) and obstacle(engine) is None
    other = replace(engine, compiled=True, versions={"torch": "1.0"}, processor="z80")
    (tmp_path / "engine/config.json").write_text(json.dumps(to_json(other)))
    words = "it was compiled with torch 1.0, processor z80, and this is torch 2"
    assert inspect_engine(tmp_path / "engine", verify=False)["runs_here"].startswith(f"no: {words}")
    with pytest.raises(EngineError, match=f"cannot run here: {words}"):
        load_engine(tmp_path / "engine", 0, num_blocks=1)


def test_program_that_the_engine_does_not_list_is_not_loaded(checkpoint: Path, tmp_path: Path) -> None:
    """A compiled program is code."""
    make(checkpoint, tmp_path / "engine")
    for folder in (tmp_path / "engine/programs").iterdir():
        (folder / "program.pt2").write_bytes(b"not one of ours")
    assert isinstance(load_engine(tmp_path / "engine", 0, num_blocks=1), TorchEngine)


def test_changed_weights_are_found(checkpoint: Path, tmp_path: Path) -> None:
    make(checkpoint, tmp_path / "engine")
    file = tmp_path / "engine/rank0.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.unlink()  # it is the checkpoint's file too
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"rank0.safetensors: its content is not what"):
        inspect_engine(tmp_path / "engine", verify=True)


def test_foreign_output_is_refused_before_the_work(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not an engine of ours"):
        make(checkpoint, checkpoint, no_compile=False)
    assert not (tmp_path / ".rankforge-store").exists()


def test_store_lists_verifies_and_prunes(checkpoint: Path, tmp_path: Path) -> None:
    make(checkpoint, tmp_path / "engine")
    store = tmp_path / ".rankforge-store"
    entries = listing(store)
    assert len(entries) == 4 and {entry["kind"] for entry in entries} == {"torch-program"}
    file = next(store.rglob("program.json"))
    file.chmod(0o644)
    file.write_text(file.read_text().replace("aten", "atem"))
    assert sum(map(bool, verify(store).values())) == 1
    assert len(prune(store, "0")["evicted"]) == 4 and listing(store) == []


def test_commands_from_the_shell(checkpoint: Path, tmp_path: Path) -> None:
    engine, store = tmp_path / "engine", tmp_path / "store"
    flags = ("--no-compile", "--store-dir", store, "--json")
    made = rankforge("build", "--checkpoint-dir", checkpoint, "--output_dir", engine, *flags)
    assert json.loads(made.stdout)["num_units"] == 4, made.stderr
    assert "torch engine" in rankforge("inspect", engine).stdout
    found = json.loads(rankforge("inspect", engine, "--json").stdout)
    assert all(rank["workspace_bytes"] > 0 for rank in found["ranks"])
    assert found["inputs"]["x"] == ["float32", "tokens", "32"]
    assert "4 entries" in rankforge("store", "list", "--store_dir", store).stdout
    assert rankforge("store", "verify", "--store_dir", store).stdout == "all sound\n"
    next(store.rglob("program.json")).unlink()
    assert rankforge("store", "verify", "--store_dir", store).returncode == 2
    assert "no such store" in rankforge("store", "list", "--store_dir", tmp_path / "x").stderr
