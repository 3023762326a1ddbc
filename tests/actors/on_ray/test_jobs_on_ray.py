"""Conversion and builds by the workers of a running cluster: the same bytes as by this machine alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.ray_jobs import Patience
from tests.cluster.test_build_source import from_source
from tests.cluster.test_cli import rankforge
from tests.cluster.test_convert import content, go
from tests.tiny import save_llama

pytestmark = pytest.mark.usefixtures("local_ray")
LAYOUT = {"tp_size": 2, "pp_size": 2}
QUICK = Patience(silent_s=4, elsewhere_s=5)


def address() -> str:
    return ray.get_runtime_context().gcs_address


def flags(**values: Any) -> list[object]:
    return [word for name, value in values.items() for word in (f"--{name}", value)]


def test_convert_and_build_give_the_same_bytes(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "model")
    go(model, tmp_path / "here", **LAYOUT)
    there = ("convert", *flags(model_dir=model, output_dir=tmp_path / "there", **LAYOUT))
    done = rankforge(*there, "--address", address(), "--workers", 2, "--json")
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "here") == content(tmp_path / "there")

    local = from_source(tmp_path / "local/engine", model_dir=str(model), **LAYOUT)
    build = (
        "build",
        *flags(model_dir=model, output_dir=tmp_path / "engine", **LAYOUT),
        "--no_compile",
        "--json",
    )
    done = rankforge(*build, "--address", address())
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["key"], result["num_built"], result["converted"]) == (local.key, 4, False)
    assert content(tmp_path / "local/engine") == content(tmp_path / "engine")


@pytest.mark.slow
def test_a_compiled_engine_is_the_same_whoever_compiles(tmp_path: Path) -> None:
    """A worker has one thread, and this machine may have more."""
    model = save_llama(tmp_path / "model")
    settings = {"model_dir": str(model), "tp_size": 2, "no_compile": False}
    for name, changes in {"local": {}, "there": {"address": address()}}.items():
        from_source(tmp_path / name / "engine", **settings, **changes)
    assert content(tmp_path / "local/engine") == content(tmp_path / "there/engine")
