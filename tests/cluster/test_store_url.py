"""Builds and conversions of several machines with one store behind a URL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import actors.build_worker
import builders.build
import cluster.checkpoints
from builders.checkpoint import load_rank, read_manifest
from builders.engine_folder import load_engine
from builders.errors import ArtifactError, UserError
from builders.store import Home
from cluster.build import build
from cluster.build_options import BuildOptions
from cluster.convert import convert
from cluster.convert_options import ConvertOptions
from cluster.store import listing, pin, prune, unpin, verify
from tests.builders.homes import memory_url, objects
from tests.cluster.test_build import SILENT
from tests.cluster.test_cli import one_line_error, rankforge
from tests.tiny import save_llama

LAYOUT = {"tp_size": 2, "pp_size": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return memory_url() if request.param == "memory" else f"file://{tmp_path}/home"


def options(model: Path, out: Path, url: str, **changes: Any) -> BuildOptions:
    """A machine is a folder: output and cache are below it."""
    given = {"model_dir": str(model), "no_compile": True, **LAYOUT, **changes}
    return BuildOptions(output_dir=out / "engine", store_dir=url, **given)


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is converted or built from here on."""

    def never(*_args: Any, **_settings: Any) -> None:
        raise AssertionError("done twice")

    monkeypatch.setattr(cluster.checkpoints, "convert_ranks", never)
    monkeypatch.setattr(builders.build, "build_unit", never)
    monkeypatch.setattr(actors.build_worker, "build_one", never)


def test_the_second_machine_converts_and_compiles_nothing(
    model: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(options(model, tmp_path / "one", url), SILENT)
    assert first.converted and first.num_built == 4
    forbid(monkeypatch)
    second = build(options(model, tmp_path / "two", url), SILENT)
    assert (second.converted, second.num_built, second.key) == (False, 0, first.key)
    assert files(tmp_path / "one/engine") == files(tmp_path / "two/engine")
    assert all(load_engine(tmp_path / "two/engine", rank, num_blocks=1) for rank in range(4))
    again = build(options(model, tmp_path / "two", url), SILENT)
    assert again.reused and not any(verify(url).values())


def test_only_what_is_missing_is_built(model: Path, tmp_path: Path, url: str) -> None:
    build(options(model, tmp_path / "one", url), SILENT)
    kinds = {entry["kind"]: entry["key"] for entry in listing(url)}
    home = Home(url)
    (attempt,) = home.attempts(kinds["torch-program"])
    home.drop(attempt)
    second = build(options(model, tmp_path / "two", url), SILENT)
    assert second.num_built == 1 and not second.converted and attempt.key in home.known_keys()


def test_workers_publish_too(model: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/home"
    first = build(options(model, tmp_path / "one", url, workers=2), SILENT)
    assert first.num_built == 4 and len(listing(url)) == 1 + 4 + 4
    assert build(options(model, tmp_path / "two", url), SILENT).num_built == 0


def test_a_limit_is_of_the_cache_alone(model: Path, tmp_path: Path, url: str) -> None:
    given: dict[str, Any] = {"store_cache": tmp_path / "cache"}
    build(options(model, tmp_path / "one", url, **given), SILENT)
    made = build(options(model, tmp_path / "two", url, dtype="float16", store_limit="0", **given), SILENT)
    assert made.store and made.store.evicted
    assert len(listing(tmp_path / "cache")) == 1 + 4 + made.num_units < len(listing(url))


def test_the_cache_lies_where_it_is_wanted(model: Path, tmp_path: Path, url: str) -> None:
    build(options(model, tmp_path / "one", url, store_cache=tmp_path / "cache"), SILENT)
    assert len(listing(tmp_path / "cache")) == 9 and not (tmp_path / "one/.rankforge-store").exists()


def converted(model: Path, out: Path, **changes: Any) -> Any:
    given = ConvertOptions(model_dir=str(model), output_dir=out / "checkpoint", **LAYOUT, **changes)
    return convert(given, SILENT)


def test_a_conversion_is_found_by_another_machine_and_by_a_build(
    model: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = converted(model, tmp_path / "plain")
    first = converted(model, tmp_path / "one", store_dir=url)
    assert first.key == plain.key and not first.reused
    assert files(tmp_path / "one/checkpoint") == files(tmp_path / "plain/checkpoint")
    with monkeypatch.context() as patched:
        forbid(patched)
        second = converted(model, tmp_path / "two", store_dir=url)
        assert (second.key, second.num_bytes) == (first.key, first.num_bytes)
        assert files(tmp_path / "two/checkpoint") == files(tmp_path / "plain/checkpoint")
        assert converted(model, tmp_path / "two", store_dir=url).reused
    load_rank(tmp_path / "two/checkpoint", 3, verify=True)
    assert not build(options(model, tmp_path / "three", url), SILENT).converted
    with pytest.raises(ArtifactError, match="was made from other inputs"):
        converted(model, tmp_path / "two", store_dir=url, dtype="float16")
    assert read_manifest(tmp_path / "two/checkpoint").dtype == "float32"
    converted(model, tmp_path / "two", store_dir=url, dtype="float16", overwrite=True)
    assert read_manifest(tmp_path / "two/checkpoint").dtype == "float16"


def test_a_conversion_by_way_of_a_folder(model: Path, tmp_path: Path) -> None:
    converted(model, tmp_path / "one", store_dir=str(tmp_path / "store"))
    assert [entry["kind"] for entry in listing(tmp_path / "store")] == ["rank"] * 4


def test_damage_at_home_is_refused_and_not_published(model: Path, tmp_path: Path, url: str) -> None:
    build(options(model, tmp_path / "one", url), SILENT)
    home = Home(url)
    for name in objects(home, "files/"):
        data = home.objects.read(name)
        home.objects.write(name, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=r"does not have its sha256.*build it again"):
        build(options(model, tmp_path / "two", url), SILENT)
    assert not (tmp_path / "two/engine").exists() and listing(tmp_path / "two/.rankforge-store") == []
    assert all(verify(url).values())


def test_looking_after_a_home(model: Path, tmp_path: Path, url: str) -> None:
    build(options(model, tmp_path / "one", url), SILENT)
    (key,) = (entry["key"] for entry in listing(url) if entry["kind"] == "checkpoint")
    assert pin(url, key[:12]) == key
    assert prune(url, "0")["evicted"] == (), "all of it is new"
    assert len(prune(url, "0", "0")["evicted"]) == 8
    assert [(entry["key"], entry["pinned"]) for entry in listing(url)] == [(key, True)]
    assert unpin(url, key) == key and prune(url, "0", "0s")["evicted"] == (key,)
    with pytest.raises(UserError, match=f"no entry starts so; `rankforge store list --store_dir {url}`"):
        pin(url, key)


@pytest.mark.parametrize(
    ("store", "rule"),
    [
        ({"store_dir": "nothing://x/y"}, "unknown protocol"),
        ({"store_dir": "file:///proc/store"}, "cannot be written"),
        ({"store_dir": "ftp://me:secret@127.0.0.1:1/x"}, "ftp://127.0.0.1:1/x: cannot be opened"),
        ({"store_cache": Path("cache")}, "only in front of a URL"),
    ],
)
def test_stores_that_cannot_be_are_refused_before_work(
    model: Path, tmp_path: Path, store: dict[str, Any], rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch)
    given = {"store_dir": None, **store}
    url = given.pop("store_dir")
    for act in (
        lambda: build(options(model, tmp_path, url, **given), SILENT),
        lambda: converted(model, tmp_path, store_dir=url, **given),
    ):
        with pytest.raises(UserError, match=rule) as refused:
            act()
        assert "secret" not in str(refused.value) and list(tmp_path.iterdir()) == []


def test_from_the_shell(model: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/home"
    assert "no such store" in one_line_error(rankforge("store", "list", "--store_dir", url))
    common = ("--model_dir", model, "--no_compile", "--store-dir", url, "--json")
    made = [
        json.loads(rankforge("build", *common, "--output_dir", tmp_path / name / "engine").stdout)
        for name in ("one", "two")
    ]
    assert [one["num_built"] > 0 for one in made] == [True, False] and not made[1]["converted"]
    rows = json.loads(rankforge("store", "list", "--store_dir", url, "--json").stdout)["entries"]
    assert len(rows) == made[0]["num_units"] + 2
    assert rankforge("store", "verify", "--store_dir", url).stdout == "all sound\n"
    pruned = rankforge("store", "prune", "--store_dir", url, "--max_bytes", "0", "--min_age", "0")
    assert pruned.stdout.startswith(f"evicted {len(rows)} entries")
    assert "--min_age=soon: not a time" in one_line_error(
        rankforge("store", "prune", "--store_dir", url, "--max_bytes", "0", "--min_age", "soon")
    )
    said = rankforge("store", "list", "--store_dir", "ftp://me:secret@127.0.0.1:1/x")
    assert "ftp://127.0.0.1:1/x" in one_line_error(said) and "secret" not in said.stderr + said.stdout
