"""Looking after the store from the command line, and keeping it within a limit while building."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builders.errors import UserError
from cluster.store import listing, pin, prune, unpin
from tests.cluster.test_build import make
from tests.cluster.test_build_source import from_source
from tests.cluster.test_cli import one_line_error, rankforge
from tests.tiny import save_llama


def keys(folder: Path) -> set[str]:
    return {entry["key"] for entry in listing(folder / ".rankforge-store")}


def test_limit_evicts_what_the_build_did_not_use(tmp_path: Path) -> None:
    first, second = (save_llama(tmp_path / f"model{seed}", seed=seed) for seed in (0, 1))
    from_source(tmp_path / "one", model_dir=str(first), dtype="float16")
    old = keys(tmp_path)
    made = from_source(tmp_path / "two", model_dir=str(second), store_limit="1KB")
    assert made.store is not None and set(made.store.evicted) <= old
    assert made.store.kept_bytes > 1000, "what the build used stays, over the limit or not"
    left = keys(tmp_path)
    again = from_source(tmp_path / "two", model_dir=str(second), store_limit="1 KB")
    assert (again.converted, again.num_built, again.reused, keys(tmp_path)) == (False, 0, True, left)
    assert old - left and "evicted" in made.to_text() and made.to_json()["store"]["freed_bytes"] > 0


def test_within_the_limit_everything_stays(tmp_path: Path) -> None:
    made = from_source(tmp_path / "one", model_dir=str(save_llama(tmp_path / "model")), store_limit="1TB")
    assert made.store is not None and made.store.evicted == () and len(keys(tmp_path)) == made.num_units + 2


def test_pinned_entries_outlive_a_limit(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "model")
    from_source(tmp_path / "one", model_dir=str(model), dtype="float16")
    store = tmp_path / ".rankforge-store"
    (checkpoint,) = (entry["key"] for entry in listing(store) if entry["kind"] == "checkpoint")
    assert pin(store, checkpoint[:10]) == checkpoint
    assert checkpoint not in prune(store, "0")["evicted"] and keys(tmp_path) == {checkpoint}
    assert unpin(store, checkpoint) == checkpoint
    assert prune(store, "0")["evicted"] == (checkpoint,)


def test_limit_that_is_no_size_is_refused_before_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--store_limit=lots: not a size"):
        make(tmp_path / "x", tmp_path / "engine", store_limit="lots")


def test_pinning_from_the_shell(tmp_path: Path) -> None:
    from_source(tmp_path / "one", model_dir=str(save_llama(tmp_path / "model")))
    store = tmp_path / ".rankforge-store"
    key = listing(store)[0]["key"]
    assert rankforge("store", "pin", key[:16], "--store-dir", store).stdout == f"pinned {key}\n"
    rows = json.loads(rankforge("store", "list", "--store_dir", store, "--json").stdout)["entries"]
    assert [row["key"] for row in rows if row["pinned"]] == [key]
    assert rankforge("store", "unpin", key, "--store_dir", store).returncode == 0
    assert "no entry starts so" in one_line_error(rankforge("store", "pin", "xyz", "--store_dir", store))
    assert "--max_bytes=2 lots: not a size" in one_line_error(
        rankforge("store", "prune", "--max_bytes", "2 lots", "--store_dir", store)
    )


def test_a_start_that_entries_share_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for name in ("ab", "ac"):
        (store / "entries" / name.ljust(64, "0")).mkdir(parents=True)
    with pytest.raises(UserError, match="2 entries start so; give more"):
        pin(store, "a")
