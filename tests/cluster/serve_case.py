"""A service of tiny models on the Ray that tests share."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from cluster.deployed import deployed
from cluster.serve_config import model_config
from cluster.serve_plan import Service
from cluster.serve_port import free_port


def service(port: int, models: Mapping[str, Mapping[str, Any]], **api: Any) -> Service:
    """`models` are the args of each."""
    applications = [
        {"name": "api", "route_prefix": "/", "import_path": "cluster.serving:api", "args": {"cpus": 0, **api}}
    ]
    applications += [
        {"name": name, "route_prefix": None, "import_path": "cluster.serving:model", "args": {**args}}
        for name, args in models.items()
    ]
    schema = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": applications,
    }
    configs = {name: model_config(args) for name, args in models.items()}
    return Service(schema=schema, models=configs, is_file=True)


@contextmanager
def serving(models: Mapping[str, Mapping[str, Any]], **api: Any) -> Iterator[Service]:
    """Until the block ends."""
    found = service(free_port(), models, **api)
    with (
        tempfile.TemporaryDirectory(prefix="serve-") as folder,
        deployed(found, 5.0, sys.stderr, scratch=Path(folder)),
    ):
        yield found


def change(old: Service, models: Mapping[str, Mapping[str, Any]], **api: Any) -> None:
    """Deploy again, as `serve deploy` would."""
    new = service(old.schema["http_options"]["port"], models, **api)
    client = _get_global_client()
    assert client
    client.deploy_apps(ServeDeploySchema.model_validate(new.schema))


def wait_for(what: Callable[[], object], timeout_s: float = 180.0) -> None:
    """Until it is true."""
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {serve.status().applications}"
        time.sleep(0.05)


def replicas(name: str) -> list[str]:
    """Those of a model that take requests."""
    return sorted(one["replica_id"] for one in _replicas(name))


def processes(name: str) -> list[int]:
    """In which they are."""
    return [one["pid"] for one in _replicas(name)]


def actors(name: str) -> list[str]:
    """As Ray names them."""
    return [one["actor_name"] for one in _replicas(name)]


def _replicas(name: str) -> list[dict[str, Any]]:
    deployments = _details()["applications"].get(name, {}).get("deployments", {})
    found = deployments.get("Model", {}).get("replicas", ())
    return [one for one in found if one["state"] == "RUNNING"]


def _details() -> dict[str, Any]:
    client = _get_global_client()
    assert client
    found: dict[str, Any] = client.get_serve_details()
    return found


def is_ready(found: Service) -> bool:
    return httpx.get(f"{found.url}/ready", verify=False, timeout=60).status_code == 200
