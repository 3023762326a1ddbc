"""Ranks converted and built by workers of a Ray cluster, beside the same work one after another, in one run.

The cluster is one of this machine: a head that works on nothing and some nodes. Every measurement is a driver
of its own, from its first import to its end, with an empty store and empty compiler caches. The least that
the cluster may take is what nobody can save: workers that start (measured with jobs that do nothing), the
slowest rank and the slowest unit (as they were one after another), and what the driver does alone.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import convert, machine
from benchmarks.alone import alone
from benchmarks.build import CACHES
from builders.sources.stored import index_file

GOAL = 1.3


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is built, and by whom."""

    model: Path
    ranks: int
    workers: int
    no_compile: bool

    def options(self, folder: Path, name: str, **changes: Any) -> dict[str, Any]:
        """Of one build; those in one folder share a store."""
        layout = {"model_dir": str(self.model), "tp_size": self.ranks, "no_compile": self.no_compile}
        return {**layout, "output_dir": folder / name, "store_dir": str(folder / "store"), **changes}


@dataclass(frozen=True, kw_only=True)
class Built:
    """One build."""

    seconds: float
    """From the driver's first import on."""
    phases: Mapping[str, float]
    parts: Mapping[str, Sequence[float]]
    """How long every rank and every unit took, where they came one after another."""
    num_built: int
    key: str

    @property
    def slowest_s(self) -> float:
        """What several workers cannot share."""
        return sum(max(each, default=0.0) for each in self.parts.values())

    @property
    def alone_s(self) -> float:
        """What only the driver does."""
        return self.seconds - sum(sum(each) for each in self.parts.values())


@dataclass
class Watch:
    """A reporter that looks at the clock."""

    parts: dict[str, list[float]] = field(default_factory=dict)
    _last_s: float = 0.0

    def start(
        self, sizes: Sequence[int], label: str, unit: str = "bytes", numbers: Sequence[int] = ()
    ) -> None:
        self._now = self.parts.setdefault(unit, [])
        self._last_s = time.perf_counter()

    def advance(self, part: int, amount: int) -> None: ...

    def done(self, part: int) -> None:
        now_s = time.perf_counter()
        self._now.append(now_s - self._last_s)
        self._last_s = now_s

    def lost(self, part: int, what: str) -> None:
        print(f"lost: {what}")

    def finish(self) -> None: ...


def built(options: Mapping[str, Any]) -> Iterator[Built]:
    """A driver's life."""
    began = time.perf_counter()
    from cluster.build import build
    from cluster.build_options import BuildOptions

    watch = Watch()
    result = build(BuildOptions(**options), watch)
    yield Built(
        seconds=time.perf_counter() - began,
        phases=dict(result.seconds),
        parts=watch.parts,
        num_built=result.num_built,
        key=result.key,
    )


def started(address: str, workers: int) -> Iterator[float]:
    """As long as it takes to join, to start workers, and to end them; they get a job each that is nothing."""
    began = time.perf_counter()
    from actors.executor import Unheard
    from actors.ray_jobs import RayJobs
    from actors.ray_worker import Needs
    from benchmarks.build_cluster import nothing  # workers know no __main__
    from cluster.ray_cluster import connect

    connect(address)
    RayJobs(workers=workers, needs=Needs()).run(nothing, range(workers), ["nothing"] * workers, Unheard())
    yield time.perf_counter() - began


def nothing(_job: int, _advance: Callable[[int], None]) -> None:
    """A job."""


@contextmanager
def nodes(number: int, cpus: int) -> Iterator[str]:
    """A cluster's address."""
    from ray.cluster_utils import Cluster

    node = {"object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"num_cpus": 0, "include_dashboard": False})
    for _ in range(number):
        cluster.add_node(num_cpus=cpus, **node)
    yield cluster.address
    cluster.shutdown()


def main() -> None:
    """Make, measure in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2)
    parser.add_argument("--ranks", type=int, default=4, help="tensor parallel ones, and workers")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--no_compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where to work; removed afterwards")
    given = parser.parse_args()
    with ExitStack() as held:
        name = held.enter_context(tempfile.TemporaryDirectory(dir=given.folder))
        os.environ |= {cache: f"{name}/round/caches" for cache in CACHES}  # of nodes and drivers alike
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        address = held.enter_context(nodes(given.nodes, given.ranks))
        work = Work(
            model=make(Path(name) / "model", given.gigabytes),
            ranks=given.ranks,
            workers=given.ranks,
            no_compile=given.no_compile,
        )
        rounds = [one_round(Path(name) / "round", work, address) for _ in range(given.rounds)]
    report(given, work, rounds)


def make(folder: Path, gigabytes: float) -> Path:
    """A model as Hugging Face has it."""
    plan = convert.make(folder, gigabytes, 1)
    layers = {"num_hidden_layers": plan.spec.num_layers, "architectures": ["LlamaForCausalLM"]}
    sizes = {"rms_norm_eps": 1e-5, "hidden_act": "silu", "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps({**convert.CONFIG, **layers, **sizes}))
    where = {key: file.name for file in sorted(folder.glob("*.safetensors")) for key in index_file(file)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


@dataclass(frozen=True, kw_only=True)
class Round:
    """Everything once."""

    one_by_one: Built
    start_s: float
    cluster: Built
    again: Built
    """To another folder, with the same store."""

    @property
    def least_s(self) -> float:
        """What the cluster's build cannot be faster than."""
        return self.start_s + self.one_by_one.slowest_s + self.one_by_one.alone_s


def one_round(folder: Path, work: Work, address: str) -> Round:
    """In turn, and what each must have in common."""
    shutil.rmtree(folder, ignore_errors=True)
    for file in sorted(work.model.iterdir()):
        convert.read_through(file)
    there = {"address": address, "workers": work.workers}
    one_by_one = measured(folder / "here", work.options(folder / "here", "engine", workers=1))
    (start_s,) = alone(started, address, work.workers)
    cluster = measured(folder / "there", work.options(folder / "there", "engine", **there))
    again = measured(folder / "there", work.options(folder / "there", "other", **there))
    keys = [each.key for each in (one_by_one, cluster, again)]
    if len(set(keys)) != 1 or again.num_built:
        raise RuntimeError(f"not the same engine ({keys}), or {again.num_built} units built twice")
    return Round(one_by_one=one_by_one, start_s=start_s, cluster=cluster, again=again)


def measured(folder: Path, options: Mapping[str, Any]) -> Built:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder.parent / "caches", ignore_errors=True)
    os.sync()
    (found,) = alone(built, options)
    return found


def report(given: argparse.Namespace, work: Work, rounds: Sequence[Round]) -> None:
    """Medians, as a record has them."""
    print("\n".join(machine.described("benchmarks.build_cluster")))
    load = ", ".join(f"{each:.0f}" for each in os.getloadavg())
    print(f"Load of the machine in the last 1, 5 and 15 minutes: {load}\n")
    print(f"{given.gigabytes:g} GB to tp {work.ranks}: {work.workers} workers on {given.nodes} nodes,")
    print(f"medians of {len(rounds)} rounds\n")
    print("| what | seconds | phases |\n| --- | --- | --- |")
    for name in ("one_by_one", "cluster", "again"):
        row(name.replace("_", " "), [getattr(each, name) for each in rounds])
    ranks = median(max(each.one_by_one.parts["bytes"]) for each in rounds)
    units = median(max(each.one_by_one.parts["percent"]) for each in rounds)
    start = median(each.start_s for each in rounds)
    print(f"\nslowest rank {ranks:.1f} s, slowest unit {units:.1f} s, both alone on the machine")
    print(f"workers that do nothing {start:.1f} s, {start / work.workers:.2f} s a rank")
    least = median(each.least_s for each in rounds)
    share = median(each.cluster.seconds / each.least_s for each in rounds)
    print(f"least possible {least:.1f} s; the cluster took {share:.2f} of it (goal {GOAL})")


def row(name: str, builds: Sequence[Built]) -> None:
    """One line of the table."""
    phases = (f"{phase} {median(each.phases[phase] for each in builds):.1f}" for phase in builds[0].phases)
    print(f"| {name} | {median(each.seconds for each in builds):.1f} | {', '.join(phases)} |")


def median(values: Iterator[float]) -> float:
    return statistics.median(list(values))


if __name__ == "__main__":
    main()
