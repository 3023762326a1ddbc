"""Nodes that share no disk: a store behind a URL is enough, a folder that others do not see is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from builders.store import Home
from tests.actors.on_ray.clusters import NODE, idle_head
from tests.cluster.test_build_source import from_source
from tests.cluster.test_cli import rankforge
from tests.cluster.test_convert import content, go
from tests.tiny import save_llama

LAYOUT = {"tp_size": 2, "pp_size": 2}
FLAGS = ("--tp_size", 2, "--pp_size", 2)
ITS_OWN = 'mount -t tmpfs none "$0" && exec "$@"'

pytestmark = pytest.mark.skipif(
    subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0,
    reason="mounts of its own take rights that this user has not got",
)


@dataclass(frozen=True)
class Apart:
    """A head that works on nothing, and a node that does, with a disk of its own below a folder."""

    address: str
    folder: Path
    node: int
    """The process that is the node."""

    def seen_there(self, path: Path) -> Path:
        """A path as the node sees it."""
        return Path(f"/proc/{self.node}/root{path}")


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Apart]:
    folder = tmp_path / "apart"
    folder.mkdir()
    with idle_head(num_nodes=0) as cluster:
        node = subprocess.Popen(["unshare", "-m", "sh", "-c", ITS_OWN, str(folder), *start(cluster.address)])
        yield Apart(cluster.address, folder, node.pid)
        node.terminate()
        node.wait(60)


def start(address: str) -> list[str]:
    """A node, until it is told to end."""
    sizes = ["--num-cpus", str(NODE["num_cpus"]), "--object-store-memory", str(NODE["object_store_memory"])]
    return [sys.executable, "-m", "ray.scripts.scripts", "start", "--address", address, "--block", *sizes]


def test_a_url_is_a_store_that_all_share(apart: Apart, tmp_path: Path) -> None:
    model, url, cache = save_llama(tmp_path / "model"), f"file://{tmp_path}/home", apart.folder / "cache"
    go(model, tmp_path / "here", **LAYOUT)
    from_source(tmp_path / "local/engine", model_dir=str(model), **LAYOUT)
    there = ("--address", apart.address, "--store_dir", url, "--store_cache", cache, "--json")

    done = rankforge("convert", "--model_dir", model, "--output_dir", tmp_path / "there", *FLAGS, *there)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "there") == content(tmp_path / "here")
    assert len(list(apart.seen_there(cache).glob("entries/*/rank*.safetensors"))) == 4, "made there"

    out = tmp_path / "engine"
    done = rankforge("build", "--model_dir", model, "--output_dir", out, "--no_compile", *FLAGS, *there)
    assert done.returncode == 0, done.stderr
    assert (json.loads(done.stdout)["converted"], json.loads(done.stdout)["num_built"]) == (False, 4)
    assert content(out) == content(tmp_path / "local/engine")
    assert not any(Home(url).verify().values())
    jobs = json.loads(rankforge("jobs", "list", "--store_dir", url, "--json").stdout)["jobs"]
    assert [(job["verb"], job["state"]) for job in jobs] == [("build", "done"), ("convert", "done")]


def test_plans_hold_weights_that_the_planner_has_not_seen_converted(apart: Apart, tmp_path: Path) -> None:
    """They are those of the rank's own entry in the store: the planner's folders are not here."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    model, url, out = save_llama(tmp_path / "model"), f"file://{tmp_path}/home", apart.folder / "engine"
    store = ("--store_dir", url, "--store_cache", apart.folder / "cache")
    kind = ("--engine", "tensorrt", "--target", "sm89", "--dtype", "float16", "--tp_size", 2)
    build = ("build", "--model_dir", model, "--output_dir", out, *kind, *store, "--json")
    done = rankforge(*build, "--address", apart.address)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_built"] == 2
    assert len(list(out.glob("programs/*/engine.plan"))) == 2 and not list(out.glob("*.safetensors"))


def test_a_folder_that_a_node_does_not_see(apart: Apart, tmp_path: Path) -> None:
    model, store = save_llama(tmp_path / "model"), apart.folder / "store"
    command = ("convert", "--model_dir", model, "--output_dir", tmp_path / "out", "--store_dir", store)
    done = rankforge(*command, "--address", apart.address)
    error = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and error.startswith("error: rank "), done.stderr
    assert f"{store}: the store is not to be seen here; name one with --store_dir that all nodes see" in error
    assert not (tmp_path / "out").exists() and not apart.seen_there(store / "entries").exists()
