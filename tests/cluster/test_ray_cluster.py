"""Addresses at which no Ray is, and the one that names none."""

from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path

import pytest

from builders.errors import UserError
from builders.store import Store
from cluster.job_record import records
from cluster.ray_cluster import connect
from tests.cluster.hub_server import serve
from tests.cluster.test_cli import rankforge
from tests.tiny import save_llama


@pytest.mark.parametrize("address", ["nonsense", "ray://127.0.0.1:10001", "host:", ":6379", "host:70000", ""])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UserError, match=f"^--address={address}: not an address of Ray; write"):
        connect(address)


def test_an_address_where_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"^--address={address}: no Ray cluster answers \(.*refused\)"):
            connect(address)


def test_an_address_of_another_program() -> None:
    """Ray would ask it again and again."""
    with serve() as hub:
        address = hub.endpoint.removeprefix("http://")
        with pytest.raises(UserError, match=rf"^--address={address}: no Ray cluster answers \(what listens"):
            connect(address)


def pid_of(where: str) -> str:
    found = re.search(r"\(pid (\d+)\)", where)
    assert found, where
    return found[1]


def test_a_cluster_of_this_machine_alone(tmp_path: Path) -> None:
    """It ends with the command, and it is not one that others have started."""
    model = save_llama(tmp_path / "model")
    command = ("convert", "--model_dir", model, "--output_dir", tmp_path / "out", "--tp_size", 2)
    done = rankforge(*command, "--address", "local", "--workers", 2, timeout_s=280)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("convert ") for line in done.stderr.splitlines()), done.stderr
    (record,) = records(Store(tmp_path / ".rankforge-store").notes)
    assert all(part.where.startswith("node ") for part in record.parts), record
    deadline = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid_of(part.where)}") for part in record.parts):
        assert time.monotonic() < deadline, record
        time.sleep(0.1)
