"""`rankforge serve`: starts what is missing, waits until it answers, stays, and leaves nothing behind."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TextIO

import ray

from builders.errors import UserError
from cluster.api_keys import read_keys
from cluster.deployed import deployed
from cluster.placement import Node
from cluster.ray_cluster import join, silence, warn_of_open_door
from cluster.serve_config import model_name
from cluster.serve_options import ServeOptions
from cluster.serve_plan import Service, planned

_OWN_RAY = {
    "prestart_worker_first_driver": False,  # replicas need processes of their own
    "worker_niceness": 0,  # by itself, Ray has workers make room for whatever else a machine does
}


def serve(options: ServeOptions, out: TextIO, notes: TextIO) -> None:
    """Until it is interrupted."""
    with served(options, notes) as service:
        print(_greeting(service), file=out, flush=True)
        while True:
            time.sleep(3600)


@contextmanager
def served(options: ServeOptions, notes: TextIO) -> Iterator[Service]:
    """From when it answers on; its end is the service's."""
    service = planned(options)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with (
        _cluster(options.address, service, notes) as scratch,
        deployed(service, options.drain_s, notes, scratch=scratch),
    ):
        yield service


@contextmanager
def _cluster(address: str | None, service: Service, notes: TextIO) -> Iterator[Path | None]:
    """The one that was named; or one of this machine, which ends with this process, and a folder for it."""
    if join(address) is not None:
        warn_of_open_door(notes)
        yield None
        return
    _check_free(service)
    for file in service.keys_files:
        read_keys(file)
    cpus = max(os.cpu_count() or 1, math.ceil(service.cpus))
    with _signals_kept():
        ray.init(
            address="local",
            num_cpus=cpus,
            log_to_driver=False,
            include_dashboard=False,
            logging_level=logging.ERROR,
            _system_config=_OWN_RAY,
        )
    silence()
    try:
        service.check(nodes())
        with TemporaryDirectory(prefix="rankforge-") as folder:
            yield Path(folder)
    finally:
        ray.shutdown()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray would end all of itself at the first sign, with nothing drained."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    is_heard = False
    try:
        yield
    except SystemExit:  # Ray's answer to a SIGTERM while it starts
        is_heard = True
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    if is_heard:
        signal.raise_signal(signal.SIGTERM)


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


def _greeting(service: Service) -> str:
    names = [model_name(application) for application in service.models]
    body = {"model": names[0], "prompt": "Hello", "max_tokens": 16}
    key = " -H 'authorization: Bearer KEY'" if service.keys_files else ""
    return (
        f"serving {', '.join(names)} at {service.url}/v1\n"
        f"curl {service.url}/v1/completions{key} -H 'content-type: application/json' -d '{json.dumps(body)}'"
    )
