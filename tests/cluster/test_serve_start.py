"""`rankforge serve` that cannot start, or is stopped before it has: one line, and nothing is left."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from cluster.serve_port import free_port
from tests.cluster.marks import Mark, marking
from tests.cluster.run_engines import Made, make
from tests.cluster.test_cli import one_line_error, rankforge

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def engine(made: Made) -> Path:
    return made.engine("tp2", tp_size=2)


@pytest.fixture
def mark() -> Iterator[Mark]:
    with marking() as found:
        yield found


@pytest.fixture
def no_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray would put its files there."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "ray-files"))
    yield
    assert not (tmp_path / "ray-files").exists()


def test_a_port_that_is_taken(engine: Path, no_ray: None) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = one_line_error(rankforge("serve", engine, "--port", port))
    assert f"--port={port}: cannot serve at 127.0.0.1 (Address already in use); choose another" in line


def test_a_folder_that_is_nothing(tmp_path: Path, no_ray: None) -> None:
    line = one_line_error(rankforge("serve", tmp_path, "--name", "none", "--port", free_port()))
    assert f"none: {tmp_path}/config.json: missing" in line


def test_a_file_with_a_field_of_another_type(engine: Path, tmp_path: Path, no_ray: None) -> None:
    model = {"name": "a", "import_path": "cluster.serving:model", "route_prefix": None}
    model |= {"args": {"model": str(engine), "replicas": 2}}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump({"applications": [model]}))
    line = one_line_error(rankforge("serve", tmp_path / "serve.yaml"))
    assert "serve.yaml: a: Replicas: expected an object, got int" in line


def test_a_ray_that_cannot_start(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It wants a folder where there is a file."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    line = one_line_error(rankforge("serve", engine, "--port", free_port()))
    assert (
        "Ray does not start on this machine: " in line and "or name a running cluster with --address" in line
    )


def test_a_ray_that_ends_while_it_starts(engine: Path, mark: Mark) -> None:
    """Ray itself would say so after half a minute."""
    command = mark.start("serve", engine, "--port", free_port())
    os.kill(mark.wait_for("raylet/raylet"), signal.SIGKILL)
    printed, complained = command.communicate(timeout=120)
    assert (command.returncode, printed) == (1, ""), complained
    (line,) = [line for line in complained.splitlines() if line.startswith("error: ")]
    assert "error: Ray's raylet has ended on this machine; start again" in line
    assert "Traceback" not in complained and mark.are_gone()


STOPS = [
    ("gcs_server", os.kill, signal.SIGTERM),
    ("raylet/raylet", os.killpg, signal.SIGINT),
    ("Model.__init__", os.killpg, signal.SIGTERM),
]
"""At which process; to the command alone, or to all of its group, as terminals and some supervisors do."""


@pytest.mark.parametrize(("process", "send", "number"), STOPS)
def test_stopped_while_it_starts_it_leaves_no_process(
    process: str, send: Callable[[int, int], None], number: signal.Signals, engine: Path, mark: Mark
) -> None:
    command = mark.start("serve", engine, "--port", free_port())
    mark.wait_for(process)
    send(command.pid, number)
    _, complained = command.communicate(timeout=120)
    assert command.returncode == 128 + number, complained
    assert "Traceback" not in complained and "error: " not in complained
    assert mark.are_gone()


@pytest.mark.long
def test_killed_as_a_group_while_it_serves(engine: Path, mark: Mark) -> None:
    """Ray is gone before anything can be drained."""
    command = mark.start("serve", engine, "--port", free_port())
    assert command.stdout
    while not (line := command.stdout.readline()).startswith("curl"):
        assert line, command.communicate()
    os.killpg(command.pid, signal.SIGTERM)
    _, complained = command.communicate(timeout=120)
    assert command.returncode == 128 + signal.SIGTERM and "Traceback" not in complained
    assert mark.are_gone()
