"""A Ray of a test's own, in a process of its own: nodes, a token or none, an autoscaler, a dashboard."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parent.parent.parent
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
"""What the tests' own environment says of Ray does not count."""


def python(*args: object, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """In an environment of its own."""
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, cwd=ROOT, env=dict(env), capture_output=True, text=True, timeout=200)


@dataclass(frozen=True)
class OwnRay:
    """One that runs."""

    address: str
    env: Mapping[str, str]
    """As its nodes have it; a driver with the same may join."""
    dashboard: str | None
    _pipe: subprocess.Popen[str]

    def nodes(self) -> list[str]:
        """The node types that an autoscaler's nodes have, of those that live."""
        return sorted(name for name, alive in self._nodes() if alive)

    def nodes_ever(self) -> list[str]:
        """The same with those that are gone."""
        return sorted(name for name, _ in self._nodes())

    def _nodes(self) -> list[tuple[str, bool]]:
        found = json.loads(_asked(self._pipe, "nodes"))
        return [(name, alive) for name, alive in found if name]

    def run(self, *args: object) -> subprocess.CompletedProcess[str]:
        """Python, in an environment in which it may join."""
        return python(*args, env=self.env)

    def wait_for(self, nodes: list[str], timeout_s: float) -> None:
        """Until these live and no others."""
        deadline = time.monotonic() + timeout_s
        while (found := self.nodes()) != nodes:
            assert time.monotonic() < deadline, f"{found} after {timeout_s} s, not {nodes}"
            time.sleep(0.2)


@contextmanager
def own_ray(
    *,
    mode: str = "token",
    num_cpus: int = 4,
    scaling: Mapping[str, Any] | None = None,
    dashboard: bool = False,
) -> Iterator[OwnRay]:
    """`scaling` is what an autoscaler is told; its nodes are processes of this machine."""
    folder = Path(tempfile.mkdtemp(prefix="own-ray-"))  # sockets below need short paths
    env = _environment(folder, mode) | (FAKE if scaling else {})
    ports = [_free_port(), _free_port()]
    wish = {"temp_dir": str(folder / "ray"), "ports": ports, "num_cpus": num_cpus, "dashboard": dashboard}
    command = [sys.executable, "-m", "tests.cluster.own_ray", json.dumps(wish | {"scaling": scaling})]
    with (folder / "said").open("w") as said:
        head = subprocess.Popen(command, **_PIPED, stderr=said, env=env)
    try:
        url = f"http://127.0.0.1:{ports[1]}" if dashboard else None
        yield OwnRay(json.loads(_asked(head, "address")), env, url, head)
    except BrokenPipeError as error:
        raise AssertionError((folder / "said").read_text()) from error
    finally:
        head.communicate("", timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


NODE_TYPE = "node-type"
"""The label by which nodes of an autoscaler are known here."""
FAKE = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
_PIPED: dict[str, Any] = {
    "stdin": subprocess.PIPE,
    "stdout": subprocess.PIPE,
    "text": True,
    "cwd": ROOT,
}


def _environment(folder: Path, mode: str) -> dict[str, str]:
    """With a home of its own, where Ray finds a token of its own."""
    token = folder / "token"
    token.write_text("5eaf00d5" * 8)
    return PLAIN | {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN_PATH": str(token)}


def _asked(head: subprocess.Popen[str], question: str) -> str:
    assert head.stdin and head.stdout, "both are pipes"
    print(question, file=head.stdin, flush=True)
    if answer := head.stdout.readline():
        return answer
    raise BrokenPipeError("the head has ended")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def main(wish: Mapping[str, Any]) -> None:
    """Start it, answer questions, end it when nobody asks any more."""
    import psutil
    import ray
    from ray._private.node import Node
    from ray._private.parameter import RayParams
    from ray._private.utils import write_ray_address

    answers, sys.stdout = sys.stdout, sys.stderr
    head = Node(RayParams(**_head(wish)), head=True, shutdown_at_exit=False, spawn_reaper=True)
    write_ray_address(head.gcs_address, wish["temp_dir"])  # or a job of it joins whatever Ray is found
    ray.init(address=head.gcs_address, log_to_driver=False)
    try:
        _answer(sys.stdin, answers, head.gcs_address)
    finally:
        processes = psutil.Process().children(recursive=True)  # nodes that an autoscaler started among them
        ray.shutdown()
        head.kill_all_processes(check_alive=False, allow_graceful=True)
        for process in psutil.wait_procs(processes, timeout=1)[1]:
            process.kill()
        psutil.wait_procs(processes, timeout=20)


def _head(wish: Mapping[str, Any]) -> dict[str, Any]:
    """No port is another Ray's, and no file."""
    port, dashboard_port = wish["ports"]
    return {
        "num_cpus": wish["num_cpus"],
        "object_store_memory": 80 << 20,
        "gcs_server_port": port,
        "min_worker_port": 0,
        "max_worker_port": 0,
        "include_dashboard": wish["dashboard"],
        "dashboard_port": dashboard_port,
        "dashboard_agent_listen_port": 0,
        "temp_dir": wish["temp_dir"],
        "autoscaling_config": _scaling_file(wish) if wish["scaling"] else None,
    }


def _scaling_file(wish: Mapping[str, Any]) -> str:
    """With where the nodes that it starts are to report."""
    import ray

    host = ray._private.services.get_node_ip_address()
    provider = {**wish["scaling"]["provider"], "gcs_address": f"{host}:{wish['ports'][0]}"}
    file = Path(wish["temp_dir"]).with_name("scaling.json")
    file.write_text(json.dumps({**wish["scaling"], "provider": provider}))
    return str(file)


def _answer(questions: IO[str], answers: IO[str], address: str) -> None:
    import ray

    for question in questions:
        if question.strip() == "address":
            print(json.dumps(address), file=answers, flush=True)
        else:
            found = [(node["Labels"].get(NODE_TYPE), node["Alive"]) for node in ray.nodes()]
            print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
