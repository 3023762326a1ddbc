"""One worker on a Ray cluster, as who gives it jobs sees it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.executor import AnyWork
from actors.job_host import NEWS, JobHost
from actors.rank_host import Whereabouts

_ASK_S = 0.2
"""How often a worker is asked how far it is."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What one worker takes of the cluster."""

    num_cpus: float = 1
    num_gpus: float = 0
    accelerator_type: str | None = None
    """As Ray names it: H100."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Of the cluster's own: names that nodes were started with."""

    @property
    def bundle(self) -> dict[str, float]:
        """As Ray counts it."""
        kind = {f"accelerator_type:{self.accelerator_type}": 0.001} if self.accelerator_type else {}
        gpus = {"GPU": self.num_gpus} if self.num_gpus else {}
        return {"CPU": self.num_cpus, **gpus, **kind, **self.resources}

    def __str__(self) -> str:
        return ", ".join(f"{amount:g} {name}" for name, amount in self.bundle.items())


class RayWorker:
    """An actor, what it works on, and when it was last heard of."""

    def __init__(self, needs: Needs, avoided: Collection[str] = ()) -> None:
        self.where: Whereabouts | None = None
        """Known once it runs."""
        self.job: int | None = None
        self.doing: Any = None
        self.amount = 0
        self._order = 0
        """Tells news of the job in hand from late ones of the last."""
        self._began = self._heard = self._asked = self._idle = time.monotonic()
        self._actor = _actor(needs, avoided)
        self._greeting = self._actor.whereabouts.remote()
        self._question: Any = None
        self._process: int | None = None
        """As a file, where it is on this node."""

    def __str__(self) -> str:
        if self.where is None:
            return "a worker that does not run yet"
        return f"node {self.where.host} (pid {self.where.pid})"

    @property
    def age_s(self) -> float:
        """Since it was asked for."""
        return time.monotonic() - self._began

    @property
    def silence_s(self) -> float:
        """How long an answer is waited for."""
        return 0.0 if self._question is None else time.monotonic() - self._heard

    @property
    def idle_s(self) -> float:
        """How long it has had nothing to do."""
        return 0.0 if self.where is None or self.job is not None else time.monotonic() - self._idle

    def pardon(self) -> None:
        """Nobody has listened to it, or wanted anything of it, until now."""
        self._heard = self._idle = time.monotonic()

    def begin(self, number: int, work: AnyWork, job: Any) -> None:
        """Give it a job."""
        self.job, self.amount, self._order = number, 0, self._order + 1
        self.doing = self._actor.do.remote(self._order, work, job)

    def take(self) -> Any:
        """The result of its job, which is over."""
        result, self.amount = ray.get(self.doing)
        self.doing, self._idle = None, time.monotonic()
        return result

    def calls(self) -> list[Any]:
        """What it owes an answer to."""
        if self.where is None:
            return [self._greeting]
        if self._question is None and time.monotonic() - self._asked > _ASK_S:
            self._question, self._asked = self._actor.news.remote(), time.monotonic()
            self._heard = self._asked
        return [call for call in (self.doing, self._question) if call is not None]

    def answered(self, call: Any) -> None:
        """It lives."""
        self._heard = time.monotonic()
        if self.where is None:
            self.where, self._idle = ray.get(call), self._heard
            self._process = _process(self.where)
        else:
            (order, amount), self._question = ray.get(call), None
            self.amount = amount if order == self._order else 0

    def kill(self) -> None:
        """End it, also when it is stopped. On other nodes that is Ray's work, and may take some seconds."""
        ray.kill(self._actor)
        if self._process is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
            os.close(self._process)
            self._process = None


def _process(where: Whereabouts) -> int | None:
    if where.node != ray.get_runtime_context().get_node_id():
        return None
    try:
        return os.pidfd_open(where.pid)
    except ProcessLookupError:
        return None


def _actor(needs: Needs, avoided: Collection[str]) -> Any:
    node = elsewhere(ray.nodes(), needs.bundle, avoided)
    remote: Any = ray.remote
    return (
        remote(concurrency_groups={NEWS: 1})(JobHost)
        .options(
            num_cpus=needs.num_cpus,
            num_gpus=needs.num_gpus,
            accelerator_type=needs.accelerator_type,
            resources=dict(needs.resources),
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True) if node else "SPREAD",
            max_restarts=0,
        )
        .remote()
    )


def elsewhere(nodes: Any, bundle: Mapping[str, float], avoided: Collection[str]) -> str | None:
    """A node that has what is needed and on which nothing failed, where some have; None: Ray chooses."""
    if not avoided:
        return None
    able = [
        node["NodeID"]
        for node in nodes
        if node["Alive"] and all(node["Resources"].get(name, 0) >= amount for name, amount in bundle.items())
    ]
    return next((node for node in able if node not in avoided), None)
