"""`rankforge serve`: starts what is missing, waits until it answers, stays, and leaves nothing behind."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TextIO

import ray

from builders.errors import LayoutError, UserError
from cluster.deployed import deployed
from cluster.placement import Node
from cluster.ray_cluster import cluster_of, join, warn_of_open_door
from cluster.ray_here import ray_here
from cluster.serve_config import model_name
from cluster.serve_options import ServeOptions
from cluster.serve_plan import Service, planned
from cluster.serve_port import check_free


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
        deployed(service, options.drain_s, notes, scratch=scratch, is_own=scratch is not None),
    ):
        yield service


@contextmanager
def _cluster(address: str | None, service: Service, notes: TextIO) -> Iterator[Path | None]:
    """The one that was named; or one of this machine, which ends with this process, and a folder for it."""
    if cluster_of(address) is not None:
        if not service.is_file:
            _ = service.wanted  # or its refusal comes from the cluster, later
        join(address)
        warn_of_open_door(notes)
        _warn_of_no_room(service, notes)
        yield None
        return
    check_free(service)
    service.foresee()
    with ray_here(max(os.cpu_count() or 1, math.ceil(service.cpus))):
        service.check(nodes())
        with TemporaryDirectory(prefix="rankforge-") as folder:
            yield Path(folder)


def _warn_of_no_room(service: Service, notes: TextIO) -> None:
    """More nodes may come; and they may see folders that this machine does not."""
    try:
        service.check(nodes())
    except LayoutError as error:
        print(f"warning: {error}; waiting until there is room", file=notes, flush=True)
    except UserError:
        if not service.is_file:
            raise


def nodes() -> list[Node]:
    """Those that the cluster has, with all that is theirs."""
    return [
        Node(name=node["NodeManagerHostname"], free=node["Resources"])
        for node in ray.nodes()
        if node["Alive"]
    ]


def _greeting(service: Service) -> str:
    names = [model_name(application) for application in service.models]
    body = {"model": names[0], "prompt": "Hello", "max_tokens": 16}
    key = " -H 'authorization: Bearer KEY'" if service.keys_files else ""
    return (
        f"serving {', '.join(names)} at {service.url}/v1\n"
        f"curl {service.url}/v1/completions{key} -H 'content-type: application/json' -d '{json.dumps(body)}'"
    )
