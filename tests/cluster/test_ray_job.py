"""`ray job submit -- python -m cluster ...`: a driver finds the cluster that it is a job of."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from builders.errors import UserError
from builders.store import Store
from cluster.job_record import records
from cluster.ray_cluster import join
from cluster.settings import ray_address
from tests.cluster.own_ray import own_ray
from tests.cluster.run_engines import LIMITS, flags, make

SMALL = (*flags(**LIMITS), "--dtype", "float32", "--no_compile", "--tokens_per_block", 8)


@pytest.mark.slow
def test_a_job_joins_the_cluster_that_runs_it(tmp_path: Path) -> None:
    """It converts and builds there, and runs what it has built."""
    made, file, engine = make(tmp_path), tmp_path / "out.csv", tmp_path / "engine"
    build = ("build", "--model_dir", tmp_path / "model", "--output_dir", engine, "--tp_size", 2, *SMALL)
    run = ("run", "--engine_dir", engine, "--input_text", "hello", "--max_output_len", 8)
    with own_ray(dashboard=True) as ray:
        submit = ("-m", "ray.scripts.scripts", "job", "submit", "--address", ray.dashboard)
        for command in (build, (*run, "--output_csv", file)):
            driver = (sys.executable, "-m", "cluster", *command)
            done = ray.run(*submit, "--working-dir", ".", "--", *driver)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "succeeded" in done.stdout and "local Ray instance" not in done.stdout
            assert f"cluster at address: {ray.address}" in done.stdout
        assert f"wrote {file}" in done.stdout
    found = records(Store(tmp_path / ".rankforge-store").notes)
    assert [(record.verb, record.state) for record in found] == [("build", "done")]
    assert all(part.where.startswith("node ") for record in found for part in record.parts), found
    tokens = [int(token) for token in file.read_text().split(",")]
    assert [tokens] == made.generated(made.tokenizer.encode("hello"), max_new_tokens=8)


@pytest.mark.parametrize(
    ("value", "address"),
    [(None, None), ("", None), ("local", None), ("http://10.0.0.1:8265", None), ("https://ray.example", None),
     ("10.0.0.1:6379", "10.0.0.1:6379"), (" auto ", "auto")],
)  # fmt: skip
def test_the_environment_names_a_cluster(
    monkeypatch: pytest.MonkeyPatch, value: str | None, address: str | None
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if value is not None:
        monkeypatch.setenv("RAY_ADDRESS", value)
    assert ray_address() == address


def test_an_error_names_where_the_address_is_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://10.0.0.1:10001")
    with pytest.raises(
        UserError, match=r"^RAY_ADDRESS=ray://10\.0\.0\.1:10001: not an address of Ray; write"
    ):
        join(None)
    with pytest.raises(UserError, match=r"^--address=nonsense: not an address of Ray"):
        join("nonsense")


def test_without_any_no_cluster_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert join(None) is None
