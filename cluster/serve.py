"""`rankforge serve`: starts what is missing, waits until it answers, stays, and leaves nothing behind."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO

import ray
from ray import serve as ray_serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from builders.errors import RankforgeError, UserError, WorkerError
from cluster.catalogue import MODEL, RUNNING
from cluster.placement import Node
from cluster.ray_cluster import join, warn_of_open_door
from cluster.replica import Card
from cluster.serve_options import ServeOptions
from cluster.serve_plan import API, Service, planned

_LOOK_S = 0.2


def serve(options: ServeOptions, out: TextIO, notes: TextIO) -> None:
    """Until it is interrupted."""
    service = planned(options)
    with ExitStack() as stack:
        stack.enter_context(_cluster(options, service, notes))
        stack.enter_context(_deployed(options, service, notes))
        _until_ready(service, notes)
        print(_greeting(service), file=out, flush=True)
        while True:
            time.sleep(3600)


@contextmanager
def _cluster(options: ServeOptions, service: Service, notes: TextIO) -> Iterator[None]:
    """The one that was named, or one of this machine, which ends with this process."""
    if join(options.address) is not None:
        warn_of_open_door(notes)
        yield
        return
    _check_free(service)
    cpus = max(os.cpu_count() or 1, math.ceil(service.cpus))
    with _signals_kept():
        ray.init(address="local", num_cpus=cpus, log_to_driver=False, include_dashboard=False)
    try:
        service.check(nodes())
        yield
    finally:
        ray.shutdown()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray would end all of itself at the first sign, with nothing drained."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def nodes() -> list[Node]:
    """Those that the cluster has, with all that is theirs."""
    return [
        Node(name=node["NodeManagerHostname"], free=node["Resources"])
        for node in ray.nodes()
        if node["Alive"]
    ]


def _check_free(service: Service) -> None:
    http = service.schema["http_options"]
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((http["host"], http["port"]))
        except OSError as error:
            raise UserError(
                f"--port={http['port']}: cannot serve at {http['host']} ({error.strerror}); choose another"
            ) from error


@contextmanager
def _deployed(options: ServeOptions, service: Service, notes: TextIO) -> Iterator[None]:
    """What this deploys is drained at the end, and Serve ended, if it was not there before."""
    before = ray_serve.status()
    _start(service)
    try:
        if service.is_file:
            client = _get_global_client()
            assert client is not None, "Serve has been started"
            client.deploy_apps(ServeDeploySchema.model_validate(service.schema))
        else:
            _run(service, has_api=API in before.applications)
        yield
    finally:
        ours = [
            app["name"] for app in service.schema["applications"] if app["name"] not in before.applications
        ]
        _drain(service, ours, options.drain_s, notes)
        if not before.proxies:
            ray_serve.shutdown()


def _start(service: Service) -> None:
    """HAProxy hands connections to the API's processes: no token passes through Serve's own proxy."""
    given = {"host": service.schema["http_options"]["host"], "port": service.schema["http_options"]["port"]}
    env = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    }
    chosen = service.schema.get("controller_options") or {"runtime_env": {"env_vars": env}}
    ray_serve.start(
        proxy_location=service.schema.get("proxy_location"), http_options=given, controller_options=chosen
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(service: Service, *, has_api: bool) -> None:
    from cluster.serving import api, model

    builders: dict[str, Any] = {"cluster.serving:api": api, "cluster.serving:model": model}
    targets = [
        ray_serve.RunTarget(
            target=builders[app["import_path"]](app["args"]),
            name=app["name"],
            route_prefix=app["route_prefix"],
        )
        for app in service.schema["applications"]
        if app["name"] != API or not has_api
    ]
    ray_serve.run_many(
        targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False
    )


def _until_ready(service: Service, notes: TextIO) -> None:
    said: dict[str, str] = {}
    waiting = {app["name"] for app in service.schema["applications"]}
    while waiting:
        found = ray_serve.status().applications
        for name in sorted(waiting & found.keys()):
            status = found[name].status
            if status == ApplicationStatus.DEPLOY_FAILED:
                raise _failure(name, found[name])
            if said.get(name) != status.value:
                said[name] = status.value
                print(f"{name}: {status.value.lower().replace('_', ' ')}", file=notes, flush=True)
            if status == ApplicationStatus.RUNNING:
                waiting.discard(name)
                if name in service.models:
                    print(f"{name}: {_phases(name)}", file=notes, flush=True)
        time.sleep(_LOOK_S)
    while service.api and not _answers(service):
        time.sleep(_LOOK_S)


def _failure(name: str, status: Any) -> RankforgeError:
    """The last line of a trace is what was raised."""
    said = status.deployments[MODEL].message if MODEL in status.deployments else status.message
    lines = [line.strip() for line in (said or status.message).splitlines() if line.strip()]
    cause = next(
        (line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no more is known"
    )
    kind = UserError if "builders.errors." in cause and "WorkerError" not in cause else WorkerError
    return kind(f"{name}: {cause.rpartition('builders.errors.')[2].partition(': ')[2] or cause}")


def _phases(name: str) -> str:
    status = ray_serve.status().applications[name].deployments[MODEL]
    if not status.replica_states.get(RUNNING):
        return "no replica until it is asked for"
    card: Card = ray_serve.get_deployment_handle(MODEL, name).card.remote().result(timeout_s=30)
    return ", ".join(f"{phase} {taken:.2f} s" for phase, taken in card.seconds.items())


def _answers(service: Service) -> bool:
    try:
        with urllib.request.urlopen(f"{service.url}/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _greeting(service: Service) -> str:
    body = {"model": next(iter(service.models)), "prompt": "Hello", "max_tokens": 16}
    names = ", ".join(service.models)
    return (
        f"serving {names} at {service.url}/v1\n"
        f"curl {service.url}/v1/completions -H 'content-type: application/json' -d '{json.dumps(body)}'"
    )


def _drain(service: Service, ours: list[str], drain_s: float, notes: TextIO) -> None:
    """First the API, whose requests need the models; then those."""
    apis = [name for name in ours if name == service.api]
    deadline = time.monotonic() + drain_s
    for names in (apis, [name for name in ours if name not in apis]):
        if there := [name for name in names if name in ray_serve.status().applications]:
            print(f"draining {', '.join(there)}", file=notes, flush=True)
            for name in there:
                ray_serve.delete(name, _blocking=False)
        while time.monotonic() < deadline and any(name in ray_serve.status().applications for name in names):
            time.sleep(_LOOK_S)
