"""Who carries out a conversion or a build, with what, and who hears of it: one plan, whoever works."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from actors.executor import Executor
from actors.processes import Processes
from builders.errors import UserError
from cluster.cluster_options import ClusterOptions
from cluster.progress import Reporter, Unit
from cluster.ray_cluster import join


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What jobs of a kind ask of a worker."""

    gpus: float = 0
    """For each worker, where jobs run on the device that they are for."""
    accelerator_type: str | None = None
    one_core: bool = True
    """A job keeps one core busy; others take what their machine has."""
    many: bool = False
    """On this machine, as many workers as it has cores unless told otherwise."""


CONVERT = Kind()


@dataclass(frozen=True, kw_only=True)
class Crew:
    """Carries out the jobs of one command."""

    options: ClusterOptions
    on_cluster: bool
    report: Reporter

    def executor(self, kind: Kind) -> Executor:
        """Processes of this machine, or actors on the cluster."""
        if not self.on_cluster:
            by_default = (os.cpu_count() or 1) if kind.many else 1
            return Processes(workers=self.options.workers or by_default)
        from actors.ray_jobs import RayJobs
        from actors.ray_worker import Needs

        needs = Needs(
            num_gpus=kind.gpus,
            accelerator_type=kind.accelerator_type,
            resources=resources_of(self.options.worker_resources),
        )
        return RayJobs(workers=self.options.workers or _room(kind, needs.bundle), needs=needs)

    @contextmanager
    def phase(self, label: str, sizes: Sequence[int], unit: Unit = "bytes") -> Iterator[Phase]:
        """A part of the command, of which progress is shown."""
        self.report.start(sizes, label, unit)
        try:
            yield Phase(self.report)
        finally:
            self.report.finish()


class Phase:
    """Hears of jobs and passes it on; a job's number is that of its bar."""

    def __init__(self, report: Reporter) -> None:
        self._report = report

    def began(self, job: int, where: str) -> None:
        pass

    def advanced(self, job: int, amount: int) -> None:
        self._report.advance(job, amount)

    def done(self, job: int) -> None:
        pass

    def failed(self, job: int, where: str, cause: str) -> None:
        pass

    def look(self) -> None:
        pass


def crew_of(options: ClusterOptions, report: Reporter) -> Crew:
    """Of the cluster that was named or that this process was started in, or of this machine."""
    resources_of(options.worker_resources)
    return Crew(options=options, on_cluster=join(options.address) is not None, report=report)


def resources_of(texts: Sequence[str]) -> dict[str, float]:
    """Names and amounts."""
    found = {}
    for text in texts:
        name, _, amount = text.partition("=")
        try:
            found[name] = float(amount)
        except ValueError:
            found[name] = 0
        if not name or not 0 < found[name] < math.inf:
            raise UserError(f"--worker_resources={text}: not a resource; write name=amount, such as rtx=1")
    return found


def _room(kind: Kind, bundle: Mapping[str, float]) -> int:
    import ray

    return room(ray.nodes(), bundle, one_core=kind.one_core)


def room(nodes: Sequence[Mapping[str, Any]], bundle: Mapping[str, float], *, one_core: bool) -> int:
    """How many workers fit into the cluster as it is; one a node where each takes all cores.

    At least one: for that a cluster may grow.
    """
    fitting = (
        min(int(node["Resources"].get(name, 0) / amount) for name, amount in bundle.items())
        for node in nodes
        if node["Alive"]
    )
    return max(1, sum(fitting if one_core else (min(1, number) for number in fitting)))
