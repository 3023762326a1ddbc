"""Ray Serve's side: `cluster.serving:model` and `cluster.serving:api` make applications of plain settings.

A model is an application of its own without a route, so that what changes in one leaves the others alone; the
API is another one, and finds the models that there are by itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve._private.logging_utils import get_serve_logs_dir
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.open_generator import GeneratorOptions
from actors.rank_actors import Room
from builders.errors import RankforgeError
from cluster.access import bound
from cluster.api import create_app
from cluster.api_service import Service
from cluster.catalogue import MODEL, Cluster, ServeCatalogue, watched
from cluster.engine_client import EngineLoad
from cluster.engine_maker import Made, found, made, needs
from cluster.placement import Needs, Plan, bundles_of
from cluster.remote_engine import Attend, Call
from cluster.replica import Card, Replica, open_replica
from cluster.replica_start import phases
from cluster.request_log import log_requests_to
from cluster.serve_config import (
    ModelConfig,
    ServiceConfig,
    application_name,
    model_config,
    model_name,
    service_config,
)
from cluster.serve_state import applications
from cluster.wire import Door

API_DEPLOYMENT = "Api"
"""The deployment of the API."""

_STARTS = 3
"""How often a replica that cannot start is tried."""

_GREET_S = 5.0
"""What does not answer by then is greeted again."""

_LOOK_BACK_S = 11.0
"""The load is averaged over this; Serve takes no less."""

ENVIRONMENT = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
}
"""Of our replicas' processes: everything in one event loop, as nothing in them blocks it; the API calls the
replicas without Ray between, which takes a third of the time, and says soon how many requests there are."""


def model(args: dict[str, Any]) -> serve.Application:
    """One model: `args` are the fields of `ModelConfig`."""
    config = model_config(args)
    wanted = needs(config)
    plan = bundles_of(wanted)
    replicas = config.replicas
    return (
        cast(Any, serve.deployment(Model))
        .options(
            name=MODEL,
            **_scaling(config),
            max_ongoing_requests=config.max_ongoing,
            ray_actor_options={**_replica_room(wanted), "runtime_env": {"env_vars": ENVIRONMENT}},
            placement_group_bundles=[dict(bundle) for bundle in plan.bundles],
            placement_group_strategy=plan.strategy,
            graceful_shutdown_timeout_s=config.drain_s,
            graceful_shutdown_wait_loop_s=0.1,
            health_check_period_s=config.health_check_s,
            max_constructor_retry_count=_STARTS * max(1, replicas.most),
        )
        .bind(config, _room(config, wanted, plan))
    )


def api(args: dict[str, Any]) -> serve.Application:
    """OpenAI's endpoints over all models of the cluster: `args` are the fields of `ServiceConfig`.

    `serve deploy` calls it too, and nobody else has looked then at where Serve listens.
    """
    config = service_config(args)
    config = replace(config, access=bound(config.access, _host()))

    def application() -> ASGIApp:
        return _application(config)

    return (
        cast(Any, serve.deployment(serve.ingress(application)(Api)))
        .options(
            name=API_DEPLOYMENT,
            num_replicas=config.replicas,
            max_ongoing_requests=2**20,  # the limits are `config.limits`, whose answers callers understand
            ray_actor_options={"num_cpus": config.cpus, "runtime_env": {"env_vars": ENVIRONMENT}},
            graceful_shutdown_timeout_s=config.drain_s,
            graceful_shutdown_wait_loop_s=0.1,
        )
        .bind()
    )


def _host() -> str:
    """Where Serve listens, which has been started before its applications are."""
    client = _get_global_client()
    assert client is not None, "Serve has been started"
    return str(client.http_config.host)


class Model:
    """A replica, in the first bundle of its placement group."""

    async def __init__(self, config: ModelConfig, room: Room) -> None:  # type: ignore[misc]  # Serve waits
        name = model_name(serve.get_replica_context().app_name)
        log_with_serve()
        seconds = phases()
        engine = await _made(config)
        options = GeneratorOptions(
            num_blocks=config.num_blocks,
            kv_cache_free_gpu_mem_fraction=config.kv_cache_free_gpu_memory_fraction,
            draft_tokens=config.prompt_lookup_num_tokens,
            room=room,
        )
        self._replica = await open_replica(
            name, config, engine.folder, options, {**seconds, **engine.seconds}
        )

    async def attend(self, request: bytes, door: Door) -> None:
        await self._replica.attend(request, door)

    async def card(self) -> Card:
        return self._replica.card

    async def greet(self, door: Door) -> None:
        self._replica.greet(door)

    async def load(self) -> EngineLoad:
        return self._replica.engine.load()

    async def check_health(self) -> None:
        self._replica.check()

    async def __del__(self) -> None:
        replica: Replica | None = getattr(self, "_replica", None)
        if replica:
            await replica.close()


class Api:
    """The process around the application."""

    async def drain(self) -> int:
        """Take no more requests to generate; how many are under way."""
        service: Service = cast(Any, self).app.service
        service.is_draining = True
        return service.under_way


def _scaling(config: ModelConfig) -> dict[str, Any]:
    replicas = config.replicas
    if replicas.least == replicas.most:
        return {"num_replicas": replicas.most}
    return {
        "num_replicas": None,
        "autoscaling_config": {
            "min_replicas": replicas.least,
            "max_replicas": replicas.most,
            "initial_replicas": replicas.first,
            "target_ongoing_requests": replicas.target_ongoing,
            "upscale_delay_s": replicas.upscale_delay_s,
            "downscale_delay_s": replicas.downscale_delay_s,
            "look_back_period_s": _LOOK_BACK_S,
        },
    }


def _replica_room(wanted: Needs) -> dict[str, float]:
    """What the replica's own process takes of the first bundle."""
    if wanted.holder_cpus:
        return {"num_cpus": wanted.holder_cpus}
    return {"num_cpus": wanted.rank_cpus} | ({"num_gpus": 1} if wanted.on_gpu else {})


def _room(config: ModelConfig, wanted: Needs, plan: Plan) -> Room:
    return Room(num_cpus=config.cpus_per_rank, num_gpus=int(wanted.on_gpu), bundles=plan.of_rank)


async def _made(config: ModelConfig) -> Made:
    """What has to be built is, in a process beside, with libraries and memory that serving does without."""
    if there := await asyncio.to_thread(found, config):
        return there
    group = ray.util.get_current_placement_group()
    assert group is not None, "a replica is in its own"
    here = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=0)
    task = ray.remote(made).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
    try:
        return await task.remote(config)
    except RayTaskError as error:
        if isinstance(error.cause, RankforgeError):
            raise error.cause from None
        raise


def log_with_serve() -> None:
    """What happens to its ranks is in the replica's own log; a line of every call is not."""
    without_calls()
    for handler in logging.getLogger("ray.serve").handlers:
        logging.getLogger("rankforge").addHandler(handler)


def without_calls() -> None:
    """Serve's line of a call takes a sixth of it; requests have a log of ours (`request_log.py`)."""
    logging.getLogger("ray.serve").addFilter(_is_no_call)


def _is_no_call(record: logging.LogRecord) -> bool:
    return not getattr(record, "serve_access_log", False)


def _application(config: ServiceConfig) -> ASGIApp:
    """In the replica's process."""
    without_calls()
    log_requests_to(Path(get_serve_logs_dir()) / f"requests_{os.getpid()}.jsonl")

    @asynccontextmanager
    async def opening() -> AsyncIterator[ServeCatalogue]:
        cluster = Cluster(applications=applications, replicas=_Replicas)
        async with watched(config.limits, cluster, ray.util.get_node_ip_address()) as catalogue:
            yield catalogue

    return _Nameless(create_app(opening, config.limits, access=config.access, processes=config.replicas))


class _Nameless:
    """Serve says in every answer whose it is, by the name that our application got from it."""

    def __init__(self, app: Starlette) -> None:
        self._app = app
        self.service: Service = app.state.service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        def nameless(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["x-request-id"]
            return send(message)

        await self._app(scope, receive, nameless)


class _Replicas:
    """Those of one model, as Serve chooses among them."""

    def __init__(self, name: str) -> None:
        self._handle = serve.get_deployment_handle(MODEL, application_name(name))
        self._method = self._handle.attend  # made once: Serve copies its options every time

    @property
    def attend(self) -> Attend:
        return self._attend

    async def card(self) -> Card:
        return await self._handle.card.remote()

    async def greet(self, door: Door) -> None:
        with suppress(TimeoutError, RayError, RayServeException):
            await self._handle.broadcast("greet", door).results_async(
                timeout_s=_GREET_S, return_exceptions=True
            )

    def _attend(self, request: bytes, door: Door) -> Call:
        return self._method.remote(request, door)
