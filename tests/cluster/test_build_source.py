"""Where an engine's weights come from: a checkpoint, a model converted first, a configuration alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import cluster.checkpoints
from builders.checkpoint import rank_tensors, read_manifest
from builders.convert import rank_elements
from builders.engine_folder import load_engine, read_engine
from builders.errors import ArtifactError, UserError
from builders.mapping import Mapping
from builders.spec import ModelSpec
from builders.store import disk
from cluster.build import BuildResult, build
from cluster.build_options import BuildOptions
from cluster.inspect import inspect
from cluster.inspect_engine import inspect_engine
from cluster.store import listing
from tests.cluster.test_build import SILENT, make
from tests.cluster.test_cli import one_line_error, rankforge
from tests.cluster.test_convert import go
from tests.tiny import llama_config, save_llama

LAYOUT = {"tp_size": 2, "pp_size": 2}


def from_source(out: Path, **changes: Any) -> BuildResult:
    return build(BuildOptions(output_dir=out, **{"no_compile": True, **changes}), SILENT)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_llama(tmp_path / "model")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    llama_config().save_pretrained(tmp_path / "config")
    return tmp_path / "config/config.json"


def weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {file.name: load_file(file) for file in sorted(folder.glob("rank*.safetensors"))}


def same(one: dict[str, dict[str, torch.Tensor]], other: dict[str, dict[str, torch.Tensor]]) -> bool:
    return one.keys() == other.keys() and all(
        tensor.equal(other[file][name]) for file, tensors in one.items() for name, tensor in tensors.items()
    )


def test_a_model_is_converted_as_convert_does(model: Path, tmp_path: Path) -> None:
    result = from_source(tmp_path / "engine", model_dir=str(model), **LAYOUT)
    assert (result.converted, result.num_ranks, result.num_built) == (True, 4, 4)
    go(model, tmp_path / "checkpoint", **LAYOUT)
    assert same(weights(tmp_path / "engine"), weights(tmp_path / "checkpoint"))
    assert make(tmp_path / "checkpoint", tmp_path / "other").key == result.key


def test_second_build_converts_and_builds_nothing(model: Path, tmp_path: Path) -> None:
    first = from_source(tmp_path / "engine", model_dir=str(model), **LAYOUT)
    again = from_source(tmp_path / "engine", model_dir=str(model), **LAYOUT)
    assert (again.key, again.converted, again.num_built, again.reused) == (first.key, False, 0, True)
    other = from_source(tmp_path / "other", model_dir=str(model), max_batch_size=8, **LAYOUT)
    assert (other.converted, other.num_built, other.reused) == (False, 0, False)
    kinds = [entry["kind"] for entry in listing(tmp_path / ".rankforge-store")]
    assert {kind: kinds.count(kind) for kind in kinds} == {"checkpoint": 1, "rank": 4, "torch-program": 4}


def test_changed_weights_are_noticed(model: Path, tmp_path: Path) -> None:
    first = from_source(tmp_path / "engine", model_dir=str(model))
    save_llama(model, seed=1)
    changed = from_source(tmp_path / "engine", model_dir=str(model), overwrite=True)
    assert changed.converted and changed.key != first.key and changed.num_built == 0


def test_a_damaged_note_of_hashes_costs_hashing_only(model: Path, tmp_path: Path) -> None:
    from_source(tmp_path / "engine", model_dir=str(model))
    (note,) = (tmp_path / ".rankforge-store/blobs").glob("hashes-*")
    note.write_text("[" * 100_000)
    assert from_source(tmp_path / "engine", model_dir=str(model)).reused


def test_weights_are_shared_with_the_store(model: Path, tmp_path: Path) -> None:
    from_source(tmp_path / "engine", model_dir=str(model))
    assert (tmp_path / "engine/rank0.safetensors").stat().st_nlink == 2


def test_one_source_or_none(tmp_path: Path) -> None:
    for sources in ({}, {"model_dir": "x", "model_config": "y"}):
        with pytest.raises(UserError, match="give one of --checkpoint_dir, --model_dir, --model_config"):
            from_source(tmp_path / "engine", **sources)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--checkpoint-dir", "x", "--tp-size", "1"],
            "--tp_size: the checkpoint of --checkpoint_dir is conv",
        ),
        (["--checkpoint_dir", "x", "--use_parallel_embedding"], "--use_parallel_embedding: the checkpoint"),
        (["--model_dir", "x", "--seed", "0"], "--seed: of random weights"),
        (["--model_config", "x", "--offline"], "is not fetched"),
        (["--model_config", "x"], "--model_config=x: no such file; shipped by name: gpt_175b, gpt_530b"),
        (["--model_dir", "/nowhere/at/all"], "/nowhere/at/all"),
        ([], "none was given"),
    ],
)
def test_options_of_another_source_are_refused(flags: list[str], words: str, tmp_path: Path) -> None:
    result = rankforge("build", "--output_dir", tmp_path / "engine", *flags)
    assert words in one_line_error(result)
    assert not list(tmp_path.iterdir())


def test_options_of_another_source_are_refused_from_python_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--dtype: the checkpoint"):
        from_source(tmp_path / "engine", checkpoint_dir=tmp_path, dtype="float16")


def test_configuration_alone_gives_seeded_weights(config: Path, tmp_path: Path) -> None:
    result = from_source(tmp_path / "engine", model_config=str(config), seed=7, **LAYOUT)
    assert (
        result.converted
        and not from_source(tmp_path / "engine", model_config=str(config), seed=7, **LAYOUT).converted
    )
    go(config, tmp_path / "made_up", load_format="random", seed=7, **LAYOUT)
    manifest = read_manifest(tmp_path / "made_up")
    for rank in range(4):
        stored = load_file(tmp_path / f"engine/rank{rank}.safetensors")
        made_up = rank_tensors(tmp_path / "made_up", manifest, rank)
        assert all(made_up[name].equal(tensor) for name, tensor in stored.items())
    other = from_source(tmp_path / "other", model_config=str(config), seed=8, **LAYOUT)
    assert other.key != result.key and other.num_built == 0


def test_weights_that_do_not_fit_are_refused_first(config: Path, tmp_path: Path) -> None:
    values = json.loads(config.read_text()) | {
        "hidden_size": 2**20,
        "head_dim": 64,
        "num_hidden_layers": 1000,
    }
    config.write_text(json.dumps(values))
    with pytest.raises(
        ArtifactError, match=r"weights of 2 ranks need [0-9,]{15,} bytes and .* are free; rank 0"
    ):
        from_source(tmp_path / "engine", model_config=str(config), tp_size=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config"]


def test_one_rank_alone(model: Path, tmp_path: Path) -> None:
    """The last of two stages: its programs and weights, and no others."""
    result = from_source(tmp_path / "engine", model_dir=str(model), ranks="3", **LAYOUT)
    assert (result.num_ranks, result.num_programs) == (1, 1)
    assert [file.name for file in (tmp_path / "engine").glob("rank*")] == ["rank3.safetensors"]
    engine = read_engine(tmp_path / "engine")
    assert (engine.ranks, engine.checkpoint.held) == ((None, None, None, 0), (3,))
    load_engine(tmp_path / "engine", 3, num_blocks=1)
    for rank in (0, 4, -1):
        with pytest.raises(ArtifactError, match=f"does not hold rank {rank} of 4, only 3; build it with"):
            load_engine(tmp_path / "engine", rank, num_blocks=1)
    found = inspect_engine(tmp_path / "engine", verify=True)
    assert found["weights"] == "files of ranks (3,)" and found["ranks"][0]["programs"] is None


def test_ranks_of_a_checkpoint_that_is_there(model: Path, tmp_path: Path) -> None:
    go(model, tmp_path / "checkpoint", **LAYOUT)
    make(tmp_path / "checkpoint", tmp_path / "engine", ranks="0,2-3")
    assert read_engine(tmp_path / "engine").checkpoint.held == (0, 2, 3)
    whole = make(tmp_path / "checkpoint", tmp_path / "whole")
    assert whole.key != read_engine(tmp_path / "engine").key
    rank1 = read_engine(tmp_path / "whole").checkpoint.only([1])
    assert [file.name for file in rank1.ranks] == ["rank1.safetensors"]
    with pytest.raises(ArtifactError, match="rank 0: not here, only ranks 1"):
        rank1.rank_file(0)


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ("", "not ranks"),
        ("0,,1", "not ranks"),
        ("4", "0 to 3"),
        ("2-1", "0 to 3"),
        ("0-99999999999", "not ranks"),
    ],
)
def test_ranks_that_make_no_sense(model: Path, tmp_path: Path, ranks: str, words: str) -> None:
    with pytest.raises(UserError, match=f"--ranks=.*{words}"):
        from_source(tmp_path / "engine", model_dir=str(model), ranks=ranks, **LAYOUT)


def test_programs_only_of_weights_that_would_be_made_up(config: Path, tmp_path: Path) -> None:
    go(config, tmp_path / "checkpoint", load_format="random")
    make(tmp_path / "checkpoint", tmp_path / "engine", no_weights=True)
    with pytest.raises(ArtifactError, match="holds programs only"):
        load_engine(tmp_path / "engine", 0, num_blocks=1)
    make(tmp_path / "checkpoint", tmp_path / "some", ranks="0")
    load_engine(tmp_path / "some", 0, num_blocks=1)


@pytest.mark.parametrize("source", ["model_dir", "model_config", "checkpoint_dir"])
def test_programs_only_then_weights(model: Path, tmp_path: Path, source: str) -> None:
    go(model, tmp_path / "checkpoint")
    given: dict[str, Any] = {
        "model_dir": str(model),
        "model_config": str(model / "config.json"),
        "checkpoint_dir": tmp_path / "checkpoint",
    }
    bare = from_source(tmp_path / "engine", **{source: given[source]}, no_weights=True)
    assert not list((tmp_path / "engine").glob("rank*")) and bare.num_built == 4
    with pytest.raises(ArtifactError, match="holds programs only"):
        load_engine(tmp_path / "engine", 0, num_blocks=1)
    assert inspect_engine(tmp_path / "engine", verify=True)["runs_here"].startswith("no: it holds programs")
    linked = make(tmp_path / "checkpoint", tmp_path / "engine", overwrite=True)
    assert linked.num_built == 0 and linked.key != bare.key
    load_engine(tmp_path / "engine", 0, num_blocks=1)


def test_ranks_in_the_store_are_found_one_by_one(model: Path, tmp_path: Path) -> None:
    """A rank that was built alone is not converted again beside others."""
    from_source(tmp_path / "one", model_dir=str(model), ranks="2", **LAYOUT)
    (entry,) = (tmp_path / ".rankforge-store/entries").glob("*/rank*.safetensors")
    before = entry.stat()
    from_source(tmp_path / "engine", model_dir=str(model), **LAYOUT)
    assert os.path.samefile(entry, tmp_path / "engine/rank2.safetensors")
    assert (entry.stat().st_mtime_ns, entry.name) == (before.st_mtime_ns, "rank2.safetensors")
    assert len(list((tmp_path / ".rankforge-store/entries").glob("*/rank*.safetensors"))) == 4


def test_older_configuration_brings_its_layout(tmp_path: Path) -> None:
    values = {
        "architecture": "GPTForCausalLM",
        "dtype": "float32",
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_size": 32,
        "vocab_size": 101,
        "max_position_embeddings": 2048,
        "mapping": {"world_size": 2, "tp_size": 1, "pp_size": 2},
    }
    (tmp_path / "gpt.json").write_text(json.dumps(values))
    made = from_source(tmp_path / "engine", model_config=str(tmp_path / "gpt.json"))
    assert (made.num_ranks, read_engine(tmp_path / "engine").checkpoint.mapping.pp_size) == (2, 2)
    load_engine(tmp_path / "engine", 1, num_blocks=1)
    changed = from_source(tmp_path / "other", model_config=str(tmp_path / "gpt.json"), tp_size=4)
    mapping = read_engine(tmp_path / "other").checkpoint.mapping
    assert (changed.num_ranks, mapping.tp_size, mapping.pp_size) == (4, 4, 1)


def test_programs_of_a_huge_model_need_no_weights_and_no_time(tmp_path: Path) -> None:
    """175 billion parameters over eight ranks: exported without storage, one set of programs for all."""
    made = from_source(tmp_path / "engine", model_config="gpt_175b", tp_size=8, no_weights=True)
    assert (made.num_ranks, made.num_programs, made.num_units) == (8, 1, 3)
    found = inspect_engine(tmp_path / "engine", verify=True)
    assert found["weights"] == "none, programs only"
    assert sum(rank["weight_bytes"] for rank in found["ranks"]) > 350e9
    assert disk.used_bytes(tmp_path) < 1e6


def test_looking_at_thousands_of_ranks_counts_each_shape_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = {"num_attention_heads": 64, "num_key_value_heads": 64}
    wide = llama_config(**heads, hidden_size=128, intermediate_size=64, vocab_size=4096, num_hidden_layers=40)
    wide.save_pretrained(tmp_path / "wide")
    go(tmp_path / "wide", tmp_path / "out", load_format="random", tp_size=64, pp_size=40)
    counted: list[int] = []

    def counting(spec: ModelSpec, mapping: Mapping, rank: int) -> int:
        counted.append(rank)
        return rank_elements(spec, mapping, rank)

    monkeypatch.setattr(cluster.checkpoints, "rank_elements", counting)
    assert len(inspect(tmp_path / "out", verify=False)["ranks"]) == 2560
    assert counted == [0, 64, 39 * 64], "the first, middle and last stages differ"
