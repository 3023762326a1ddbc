"""Fetching from a hub: the real client against a real server on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builders.errors import SourceError, UserError
from cluster.hub import Fetched, fetch, needed_files
from tests.cluster.hub_server import Hub, serve

BOTH = {
    "config.json": "{ }",
    "generation_config.json": "{  }",
    "tokenizer.json": "{}",
    "model.safetensors": "weights",
    "pytorch_model.bin": "the same weights",
    "modeling_evil.py": "raise SystemExit",
    "README.md": "# A model",
    "training_args.bin": "",
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as running:
        yield running


def folder(path: Path, files: dict[str, str]) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(content)
    return path


def get(hub: Hub, tmp_path: Path, model: str = "org/model", **changes: Any) -> Fetched:
    settings: dict[str, Any] = {"revision": None, "offline": False, **changes}
    return fetch(model, endpoint=hub.endpoint, cache_dir=tmp_path / "cache", **settings)


def test_only_what_is_needed(hub: Hub, tmp_path: Path) -> None:
    commit = hub.push("org/model", folder(tmp_path / "repo", BOTH))
    fetched = get(hub, tmp_path)
    wanted = {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors"}
    assert hub.fetched() == wanted
    assert {file.name for file in fetched.path.iterdir()} == wanted
    assert fetched.revision == commit
    assert (fetched.path / "model.safetensors").read_text() == "weights"


def test_config_alone(hub: Hub, tmp_path: Path) -> None:
    hub.push("org/model", folder(tmp_path / "repo", BOTH))
    get(hub, tmp_path, config_only=True)
    assert "model.safetensors" not in hub.fetched() and "config.json" in hub.fetched()


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (["a.py", "pytorch_model-1-of-2.bin", "pytorch_model.bin.index.json"], 2),
        (["model-1.safetensors", "model.safetensors.index.json", "pytorch_model.bin"], 2),
        (["consolidated.00.pth", "consolidated.01.pth", "params.json"], 3),
        (["GPT-2B-001_bf16_tp1.nemo", "README.md"], 1),
        (["model.safetensors", "original/consolidated.00.pth", "onnx/model.onnx"], 1),
    ],
)
def test_one_kind_of_weights(names: list[str], weights: int) -> None:
    assert len(needed_files(names, config_only=False)) == weights


def test_revision_is_pinned(hub: Hub, tmp_path: Path) -> None:
    old = hub.push("org/model", folder(tmp_path / "old", {**BOTH, "model.safetensors": "old"}))
    new = hub.push("org/model", folder(tmp_path / "new", {**BOTH, "model.safetensors": "new"}), branch="next")
    for revision, commit, content in ((None, old, "old"), ("next", new, "new"), (old, old, "old")):
        fetched = get(hub, tmp_path, revision=revision)
        assert fetched.revision == commit
        assert (fetched.path / "model.safetensors").read_text() == content


def test_offline_afterwards_asks_nobody(hub: Hub, tmp_path: Path) -> None:
    hub.push("org/model", folder(tmp_path / "repo", BOTH))
    online = get(hub, tmp_path)
    hub.requests.clear()
    assert get(hub, tmp_path, offline=True) == online
    assert get(hub, tmp_path, offline=True, revision=online.revision) == online
    assert hub.requests == []


def test_offline_misses_nothing_in_folders_that_are_never_fetched(hub: Hub, tmp_path: Path) -> None:
    meta = {"original/tokenizer.model": "t", "original/model.safetensors": "w", "original/config.json": "{}"}
    hub.push("org/model", folder(tmp_path / "repo", {**BOTH, **meta}))
    online = get(hub, tmp_path)
    assert not any(request.endswith("original/tokenizer.model") for request in hub.requests)
    assert get(hub, tmp_path, offline=True) == online


def test_offline_with_a_config_alone_has_no_weights(hub: Hub, tmp_path: Path) -> None:
    hub.push("org/model", folder(tmp_path / "repo", BOTH))
    online = get(hub, tmp_path, config_only=True)
    assert get(hub, tmp_path, offline=True, config_only=True) == online
    assert "without --offline" in one_line(hub, tmp_path, offline=True)


def test_nemo_archive_is_the_model(hub: Hub, tmp_path: Path) -> None:
    hub.push("org/model", folder(tmp_path / "repo", {"gpt.nemo": "tar", "README.md": ""}))
    assert get(hub, tmp_path).path.name == "gpt.nemo"


def one_line(hub: Hub, tmp_path: Path, **changes: Any) -> str:
    with pytest.raises(SourceError) as error:
        get(hub, tmp_path, **changes)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_refusals_are_one_line(hub: Hub, tmp_path: Path) -> None:
    assert "no such model on the hub" in one_line(hub, tmp_path)
    hub.push("org/model", folder(tmp_path / "repo", BOTH))
    assert "no such branch, tag or commit" in one_line(hub, tmp_path, revision="nope")
    assert "not in the local cache" in one_line(hub, tmp_path, offline=True)
    hub.gated = True
    assert "accept its terms" in one_line(hub, tmp_path)


def test_broken_hub_is_one_line(hub: Hub, tmp_path: Path) -> None:
    hub.error = 418
    assert "the hub refused" in one_line(hub, tmp_path)


def test_no_hub_at_all_is_one_line(tmp_path: Path) -> None:
    with serve() as gone:
        pass
    assert "run again" in one_line(gone, tmp_path)


@pytest.mark.parametrize("model", ["/nowhere", "./nowhere", "~/nowhere", "a/b/c"])
def test_missing_path_is_no_id(hub: Hub, tmp_path: Path, model: str) -> None:
    assert "no such folder or file" in one_line(hub, tmp_path, model=model)


@pytest.mark.parametrize("model", ["bad id", "org/--x--", "org/.."])
def test_neither_path_nor_id(hub: Hub, tmp_path: Path, model: str) -> None:
    assert "neither a folder nor a Hugging Face id" in one_line(hub, tmp_path, model=model)


def test_local_path_is_taken_as_it_is(tmp_path: Path) -> None:
    assert fetch(str(tmp_path), revision=None, offline=True) == Fetched(path=tmp_path, revision=None)
    with pytest.raises(UserError, match="revisions are of Hugging Face ids"):
        fetch(str(tmp_path), revision="main", offline=False)
