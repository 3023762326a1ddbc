"""`rankforge serve` and `serve deploy`, as users start them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from cluster.serve_port import free_port
from tests.cluster.own_ray import PLAIN, ROOT, own_ray
from tests.cluster.run_engines import Made, make
from tests.cluster.serve_case import wait_for
from tests.cluster.test_api_access import Keys

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("serve"))


@contextmanager
def rankforge_serve(
    *args: object, env: Mapping[str, str] = PLAIN
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A process, and what it has said; it is ready."""
    command = [sys.executable, "-m", "cluster", "serve", *map(str, args)]
    with subprocess.Popen(
        command, cwd=ROOT, env={**env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        notes: list[str] = []
        reading = threading.Thread(target=lambda: notes.extend(process.stderr or ()))
        reading.start()
        lines = []
        while not (lines and lines[-1].startswith("curl")):
            line = process.stdout.readline()
            assert line, "".join(notes)
            lines.append(line)
        try:
            yield process, lines
        finally:
            process.terminate()
            reading.join(100)


def test_serve_answers_until_it_is_stopped_and_leaves_nothing_behind(made: Made, tmp_path: Path) -> None:
    port, keys = free_port(), Keys(tmp_path / "keys.json")
    key = keys.add("alice")
    options = ["--port", port, "--name", "org/tiny", "--keys_file", keys.path]
    with rankforge_serve(made.engine("tp2", tp_size=2), *options) as (process, said):
        assert f"serving org/tiny at http://127.0.0.1:{port}/v1\n" in said
        assert "-H 'authorization: Bearer KEY'" in said[-1]
        url, body = said[-1].split()[1], json.loads(said[-1].split("-d ")[1].strip().strip("'"))
        assert httpx.post(url, json=body).status_code == 401
        named = httpx.post(url, json=body, headers={**key, "x-request-id": "mine"})
        assert named.json()["usage"]["completion_tokens"] > 0
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) > 3
        logged = [line for line in requests_of(family) if line["id"] == "mine"]
        assert [(line["key"], line["model"], line["status"]) for line in logged] == [
            ("alice", "org/tiny", 200)
        ]
        streamed: list[str] = []
        wish = {**body, "max_tokens": 50, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", url, json=wish, headers=key, timeout=60) as answer:
            lines = answer.iter_lines()
            streamed.append(next(lines))
            process.send_signal(signal.SIGTERM)
            streamed += lines
        assert "data: [DONE]" in streamed
        assert process.wait(60) == 128 + signal.SIGTERM
    assert not psutil.wait_procs(family, timeout=20)[1]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health")


def requests_of(family: list[psutil.Process]) -> list[dict[str, Any]]:
    """What the API's processes among them have logged, in Ray's own folder."""
    names = [f"session_*/logs/serve/requests_{process.pid}.jsonl" for process in family]
    # Of Ray's sessions, the latest has two names.
    files = {file.resolve() for name in names for file in Path(tempfile.gettempdir(), "ray").glob(name)}
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.long
def test_two_services_of_a_machine_never_answer_for_each_other(made: Made) -> None:
    """Not even while one has no process that answers: HAProxy asks a proxy of Serve's then."""
    mine, other, engine = free_port(), free_port(), made.engine("one")
    with (
        rankforge_serve(engine, "--name", "mine", "--port", mine) as (process, _),
        rankforge_serve(engine, "--name", "other", "--port", other),
    ):
        (api,) = (one for one in psutil.Process(process.pid).children(recursive=True) if is_api(one))
        api.kill()
        deadline, gaps = time.monotonic() + 100, 0
        while not (found := models_at(mine)) or not gaps:
            gaps += not found
            assert time.monotonic() < deadline, "the API is not started again"
        assert found == ["mine"]


def is_api(process: psutil.Process) -> bool:
    return "ServeReplica:api" in " ".join(process.cmdline())


def models_at(port: int) -> list[str]:
    """Nothing while nobody answers."""
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/v1/models")
    except httpx.TransportError:
        return []
    return [one["id"] for one in answer.json()["data"]] if answer.status_code == 200 else []


def test_a_cluster_that_was_there_stays(made: Made) -> None:
    """The model goes with the command, and another address than the one that is served at is refused."""
    port, engine = free_port(), made.engine("one")
    with own_ray(mode="disabled", num_cpus=8) as ray:
        options = ["--address", ray.address, "--name"]
        with rankforge_serve(engine, *options, "tiny", "--port", port, env=ray.env) as (process, said):
            url, body = said[-1].split()[1], json.loads(said[-1].split("-d ")[1].strip().strip("'"))
            assert httpx.post(url, json=body).json()["usage"]["completion_tokens"] > 0
            done = ray.run("-m", "cluster", "serve", engine, *options, "more", "--port", free_port())
            assert done.returncode == 2 and f"at --host=127.0.0.1 --port={port}; use these" in done.stderr
            process.send_signal(signal.SIGTERM)
            assert process.wait(100) == 128 + signal.SIGTERM
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/health")
        assert ray.run("-c", JOIN, ray.address).returncode == 0


JOIN = "import sys, ray; ray.init(sys.argv[1]); assert not ray.util.list_named_actors(True)"


def test_serve_deploy_takes_the_same_file(made: Made, tmp_path: Path) -> None:
    """And what is changed in it is done without the command."""
    file, port, engine = tmp_path / "serve.yaml", free_port(), str(made.engine("one"))
    config = configuration()
    config["http_options"]["port"] = port
    api, model = config["applications"][:2]
    api["args"] |= {"replicas": 1, "cpus": 0}
    model |= {"name": "one", "args": {"model": engine, "num_blocks": 32}}
    config["applications"] = [api, model]
    with own_ray(mode="disabled", dashboard=True) as ray:
        deploy(ray, file, config)
        assert wait_for_answer(port, "one", 100)["usage"]["completion_tokens"] == 4
        config["applications"].append(model | {"name": "two"})
        deploy(ray, file, config)
        assert wait_for_answer(port, "two", 100)["usage"]["completion_tokens"] == 4


def test_serve_deploy_opens_no_door_without_keys(made: Made, tmp_path: Path) -> None:
    """Serve's own command looks at nothing; the API does."""
    config = configuration()
    api, host, port = config["applications"][0], "0.0.0.0", free_port()
    config |= {"http_options": {"host": host, "port": port}, "applications": [api]}
    api["args"] |= {"replicas": 1, "cpus": 0}
    with own_ray(mode="disabled", dashboard=True) as ray:
        deploy(ray, tmp_path / "serve.yaml", config)
        wait_for(lambda: "--host 0.0.0.0: without API keys" in ray.run("-c", SAID, ray.address).stdout)
        with pytest.raises(httpx.HTTPStatusError):
            httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=60).raise_for_status()
        api["args"]["access"] = {"insecure": True}
        deploy(ray, tmp_path / "serve.yaml", config)
        wait_for(lambda: httpx.get(f"http://127.0.0.1:{port}/health", timeout=60).status_code == 200)


SAID = "import sys, ray; from ray import serve; ray.init(sys.argv[1]); print(serve.status())"


_PORTS = ("HAPROXY_STATS", "HAPROXY_METRICS", "FALLBACK_PROXY_HTTP", "FALLBACK_PROXY_GRPC")


def configuration() -> dict[str, Any]:
    """The file that users begin with, beside other services of this machine."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    env = config["controller_options"]["runtime_env"]["env_vars"]
    env |= {f"RAY_SERVE_{name}_PORT": str(free_port()) for name in _PORTS}
    return config


def deploy(ray: Any, file: Path, config: dict[str, Any]) -> None:
    file.write_text(yaml.safe_dump(config))
    done = ray.run("-m", "ray.serve.scripts", "deploy", file, "--address", ray.dashboard)
    assert done.returncode == 0, done.stderr


def wait_for_answer(port: int, model: str, timeout_s: float) -> dict[str, Any]:
    deadline, body = time.monotonic() + timeout_s, {"model": model, "prompt": "the", "max_tokens": 4}
    while True:
        try:
            answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60)
            if answer.status_code == 200:
                found: dict[str, Any] = answer.json()
                return found
            said = answer.text
        except httpx.TransportError as error:
            said = str(error)
        assert time.monotonic() < deadline, said
        time.sleep(0.5)
