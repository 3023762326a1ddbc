"""Who carries out a conversion or a build, with what, and who hears of it: one plan, whoever works."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.executor import Executor, Witness
from actors.processes import Processes
from builders.errors import JobCancelled, RankforgeError, UserError
from builders.store import Store
from cluster.cluster_options import ClusterOptions
from cluster.job_log import JobLog
from cluster.job_record import State
from cluster.progress import Reporter, Unit
from cluster.ray_cluster import join, warn_of_open_door

if TYPE_CHECKING:
    from actors.ray_jobs import RayJobs


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

_TO_COME = 32
"""Workers of one core that are asked for though there is no room for them yet: a cluster may grow."""


@dataclass(frozen=True, kw_only=True)
class Crew:
    """Carries out the jobs of one command."""

    options: ClusterOptions
    on_cluster: bool
    report: Reporter
    log: JobLog | None = None
    """Where there is a store that keeps one."""
    _kept: dict[Kind, RayJobs] = field(default_factory=dict, init=False)
    """At most one kind."""

    def executor(self, kind: Kind) -> Executor:
        """Processes of this machine, or actors on the cluster, which stay for the next jobs of their kind."""
        if not self.on_cluster:
            by_default = (os.cpu_count() or 1) if kind.many else 1
            return Processes(workers=self.options.workers or by_default)
        kind = replace(kind, many=False)
        if kind not in self._kept:
            self.let_go()  # the others need what these take
            self._kept[kind] = self._on_ray(kind)
        return self._kept[kind]

    def let_go(self) -> None:
        """No worker is left."""
        while self._kept:
            self._kept.popitem()[1].close()

    def _on_ray(self, kind: Kind) -> RayJobs:
        from actors.ray_jobs import RayJobs
        from actors.ray_worker import Needs

        needs = Needs(
            num_gpus=kind.gpus,
            accelerator_type=kind.accelerator_type,
            resources=resources_of(self.options.worker_resources),
        )
        workers = self.options.workers or _room(kind, needs.bundle)
        return RayJobs(workers=workers, needs=needs, keep=True)

    @contextmanager
    def phase(
        self,
        label: str,
        names: Sequence[str],
        sizes: Sequence[int],
        unit: Unit = "bytes",
        numbers: Sequence[int] = (),
    ) -> Iterator[Witness]:
        """A part of the command, of which progress is shown and kept."""
        self.report.start(sizes, label, unit, numbers)
        try:
            if self.log:
                self.log.phase(label, names, sizes, unit, numbers)
            yield _Phase(names, sizes, self.report, self.log)
        finally:
            self.report.finish()


class _Phase:
    """Hears of jobs and passes it on; a job's number is that of its bar and of its line in the record."""

    def __init__(
        self, names: Sequence[str], sizes: Sequence[int], report: Reporter, log: JobLog | None
    ) -> None:
        self._names, self._report, self._log = names, report, log
        self._left = dict(enumerate(sizes))

    def began(self, job: int, where: str) -> None:
        if self._log:
            self._log.part(job, state="in hand", where=where)

    def advanced(self, job: int, amount: int) -> None:
        self._left[job] -= amount
        self._report.advance(job, amount)
        if self._log:
            self._log.part(job, done=self._log.parts()[job].done + amount)

    def done(self, job: int) -> None:
        """All of it, also where it was found, because others have made it meanwhile."""
        self.advanced(job, self._left[job])
        if self._log:
            self._log.part(job, state="done")
        self._report.done(job)

    def failed(self, job: int, where: str, cause: str) -> None:
        if self._log:
            failures = (*self._log.parts()[job].failures, f"{where}: {cause}")
            self._log.part(job, state="open", failures=failures)
        self._report.lost(job, f"{self._names[job]} on {where}: {cause}")

    def look(self) -> None:
        if self._log:
            self._log.check()


@contextmanager
def crew_of(
    options: ClusterOptions, report: Reporter, *, verb: str, output: Path, store: Store | None
) -> Iterator[Crew]:
    """Of the cluster that was named or that this process was started in, or of this machine."""
    resources_of(options.worker_resources)
    on_cluster = join(options.address) is not None
    log = JobLog(store, verb, str(output)) if store else None
    if on_cluster:
        warn_of_open_door(sys.stderr)
    crew = Crew(options=options, on_cluster=on_cluster, report=report, log=log)
    with _recorded(log) if log else nullcontext():
        try:
            yield crew
        finally:
            crew.let_go()


@contextmanager
def _recorded(log: JobLog) -> Iterator[None]:
    """However it ends, the record says so."""
    ended: tuple[State, str] = ("failed", "a bug, see the driver's output")
    try:
        yield
        ended = "done", ""
    except (JobCancelled, KeyboardInterrupt, SystemExit) as error:
        ended = "cancelled", str(error)
        raise
    except (RankforgeError, OSError) as error:
        ended = "failed", str(error)
        raise
    finally:
        log.close(*ended)


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

    fitting = room(ray.nodes(), bundle, one_core=kind.one_core)
    return max(fitting, _TO_COME) if kind.one_core else fitting


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


def works_here() -> bool:
    """Whether the cluster has workers on this machine too."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return any(node["Resources"].get("CPU", 0) >= 1 for node in ray.nodes() if node["NodeID"] == here)
