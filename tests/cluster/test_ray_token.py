"""Clusters that ask for a token and clusters that do not: who may join, who is told what."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.ray_token import Door, _is_loopback, door
from tests.cluster.own_ray import PLAIN, OwnRay, own_ray, python
from tests.cluster.run_engines import make
from tests.cluster.test_cli import one_line_error

WRONG = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
PROMPT = ("--input_text", "hello", "--max_output_len", 2)
DOOR = "import sys; from cluster.ray_token import door; print(door(sys.argv[1]).name)"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("token")).engine(tp_size=2)


@pytest.fixture(scope="module")
def guarded() -> Iterator[OwnRay]:
    with own_ray(mode="token") as ray:
        yield ray


@pytest.fixture(scope="module")
def unguarded() -> Iterator[OwnRay]:
    with own_ray(mode="disabled") as ray:
        yield ray


def run(engine: Path, *address: str) -> tuple[object, ...]:
    return ("-m", "cluster", "run", "--engine_dir", engine, *PROMPT, *address)


def warnings(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("warning: ")]


@pytest.mark.slow
def test_who_has_the_token_runs_and_hears_no_warning(guarded: OwnRay, engine: Path) -> None:
    done = guarded.run(*run(engine, "--address", guarded.address))
    assert done.returncode == 0, done.stderr
    assert warnings(done.stderr) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "has", [{}, {"RAY_AUTH_MODE": "disabled"}, WRONG], ids=["nothing", "disabled", "wrong"]
)
def test_who_has_not_is_told_what_to_set(guarded: OwnRay, engine: Path, has: dict[str, str]) -> None:
    done = python(*run(engine, "--address", guarded.address), env=PLAIN | has)
    told = one_line_error(done)
    assert told.startswith(
        f"error: --address={guarded.address}: the cluster asks for a token, and this process"
    )
    assert "RAY_AUTH_MODE=token" in told and "~/.ray/auth_token" in told


@pytest.mark.slow
def test_a_cluster_that_lets_everybody_in_is_warned_of(unguarded: OwnRay, engine: Path) -> None:
    done = python(*run(engine, "--address", unguarded.address), env=PLAIN)
    assert done.returncode == 0, done.stderr
    (warning,) = warnings(done.stderr)
    assert f"cluster at {unguarded.address} asks for no token" in warning and "RAY_AUTH_MODE=token" in warning


@pytest.mark.slow
def test_a_cluster_without_and_a_driver_with_a_token_do_not_fit(unguarded: OwnRay, engine: Path) -> None:
    told = one_line_error(python(*run(engine, "--address", unguarded.address), env=PLAIN | WRONG))
    assert told.startswith(
        f"error: --address={unguarded.address}: the cluster asks for no token, and Ray runs"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "number"), [({}, 0), ({"RAY_AUTH_MODE": "disabled"}, 1)], ids=["ours", "off"]
)
def test_a_ray_of_our_own_asks_for_a_token_unless_it_is_told_not_to(
    engine: Path, tmp_path: Path, mode: dict[str, str], number: int
) -> None:
    done = python(*run(engine), env=PLAIN | mode | {"HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert len(warnings(done.stderr)) == number
    assert (tmp_path / ".ray" / "auth_token").exists() == (number == 0)


@pytest.mark.slow
def test_clusters_say_themselves_what_they_ask_for(guarded: OwnRay, unguarded: OwnRay) -> None:
    def seen(ray: OwnRay, env: dict[str, str]) -> str:
        return python("-c", DOOR, ray.address, env=PLAIN | env).stdout.strip()

    assert seen(guarded, dict(guarded.env)) == "OURS"
    assert [seen(guarded, env) for env in ({}, WRONG)] == ["SHUT", "SHUT"]
    assert [seen(unguarded, env) for env in ({}, WRONG)] == ["OPEN", "UNLIKE"]


def test_what_is_no_ray_says_nothing() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        assert door(f"127.0.0.1:{other.getsockname()[1]}") is Door.UNKNOWN


@pytest.mark.parametrize(
    ("host", "here"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("10.0.0.1", False),
     ("::", False), ("0.0.0.0", False), ("head.example", False)],
)  # fmt: skip
def test_what_other_machines_do_not_reach(host: str, here: bool) -> None:
    assert _is_loopback(host) is here
