"""Whatever is killed while it converts or builds: the result is that of an undisturbed job, byte by byte."""

from __future__ import annotations

import io
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.convert_worker import RankJob, Shelved, convert_ranks
from actors.ray_jobs import Patience, RayJobs
from actors.ray_worker import Needs, RayWorker
from actors.shared_store import SharedStore
from builders.convert import ConvertPlan
from builders.keys import Recipe
from builders.store import Store
from cluster.build import build
from cluster.build_options import BuildOptions
from cluster.progress import LineReporter
from tests.actors.on_ray.test_ray_jobs import Listener
from tests.actors.test_convert_worker import plan_of
from tests.cluster.test_build_source import from_source
from tests.cluster.test_convert import content, go
from tests.tiny import save_llama

pytestmark = pytest.mark.usefixtures("local_ray")

LAYOUT = {"tp_size": 2, "pp_size": 2}


@dataclass
class Saboteur:
    """Ends workers by a signal, some time after they were given a job: at any point of it, or after it."""

    draw: random.Random
    kills: int
    number: int = signal.SIGKILL
    begun: Counter[int] = field(default_factory=Counter)
    timers: list[threading.Timer] = field(default_factory=list)

    def at(self, worker: RayWorker, job: int) -> None:
        self.begun[job] += 1
        if self.kills and self.begun[job] == 1 and worker.where is not None:
            self.kills -= 1
            delay_s = 10 ** self.draw.uniform(-3, -0.5)
            self.timers.append(threading.Timer(delay_s, self._end, [worker.where.pid]))
            self.timers[-1].start()

    def _end(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, self.number)


@pytest.fixture
def sabotage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Saboteur]]:
    """From now on, some workers are killed while they have a job."""
    made: list[Saboteur] = []

    def begin(seed: int, kills: int = 2, number: int = signal.SIGKILL) -> Saboteur:
        saboteur = Saboteur(random.Random(seed), kills, number)
        given = RayWorker.begin

        def sabotaged(worker: RayWorker, job: int, *rest: Any) -> None:
            given(worker, job, *rest)
            saboteur.at(worker, job)

        monkeypatch.setattr(RayWorker, "begin", sabotaged)
        made.append(saboteur)
        return saboteur

    yield begin
    for timer in (timer for saboteur in made for timer in saboteur.timers):
        timer.join()


def address() -> str:
    return str(ray.get_runtime_context().gcs_address)


def sound(folder: Path) -> dict[str, int]:
    """How many entries of each kind the store has, once all are known whole and nothing is left over."""
    store = Store(folder)
    assert not any(store.verify().values())
    store.prune()
    left = list((folder / "scratch").glob("*"))
    assert not left
    return dict(Counter(entry.manifest.recipe.kind for entry in store.listing() if entry.manifest))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough to be killed in the midst of."""
    return save_llama(tmp_path_factory.mktemp("killed") / "model", vocab_size=20_000, hidden_size=256)


@pytest.mark.parametrize("seed", [0, 1])
def test_workers_killed_while_they_convert(
    model: Path, tmp_path: Path, sabotage: Callable[..., Saboteur], seed: int
) -> None:
    go(model, tmp_path / "undisturbed", **LAYOUT)
    saboteur = sabotage(seed)
    go(model, tmp_path / "out", address=address(), **LAYOUT)
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")
    assert sound(tmp_path / ".rankforge-store") == {"rank": 4}
    assert saboteur.kills == 0 and sum(saboteur.begun.values()) <= 4 + 2


@pytest.mark.parametrize("seed", [2, 3])
def test_workers_killed_while_they_build(
    model: Path, tmp_path: Path, sabotage: Callable[..., Saboteur], seed: int
) -> None:
    undisturbed = from_source(tmp_path / "here/engine", model_dir=str(model), **LAYOUT)
    saboteur = sabotage(seed, kills=4)
    stream = io.StringIO()
    options = BuildOptions(
        model_dir=str(model), output_dir=tmp_path / "engine", no_compile=True, address=address(), **LAYOUT
    )
    made = build(options, LineReporter(stream, as_json=False))
    assert made.key == undisturbed.key and content(tmp_path / "engine") == content(tmp_path / "here/engine")
    assert sound(tmp_path / ".rankforge-store") == {"checkpoint": 1, "rank": 4, "torch-program": 4}
    lost = stream.getvalue().count("its process died")
    assert sum(saboteur.begun.values()) <= 8 + lost, "only what was in hand is done again"


def test_workers_stopped_while_they_build(
    model: Path, tmp_path: Path, sabotage: Callable[..., Saboteur], monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = Patience(silent_s=4, elsewhere_s=10)
    monkeypatch.setitem(RayJobs.__init__.__kwdefaults__, "patience", patience)  # type: ignore[attr-defined]
    undisturbed = from_source(tmp_path / "here/engine", model_dir=str(model), **LAYOUT)
    sabotage(5, kills=3, number=signal.SIGSTOP)
    made = from_source(tmp_path / "engine", model_dir=str(model), address=address(), **LAYOUT)
    assert made.key == undisturbed.key and content(tmp_path / "engine") == content(tmp_path / "here/engine")
    assert sound(tmp_path / ".rankforge-store") == {"checkpoint": 1, "rank": 4, "torch-program": 4}


def test_a_stopped_worker_holds_nobody_up(
    model: Path, tmp_path: Path, sabotage: Callable[..., Saboteur]
) -> None:
    """It holds the lock of its entry, until its silence is noticed and it is killed."""
    plan: ConvertPlan = plan_of(model)
    store = Store(tmp_path / "store")
    shared = SharedStore.of(store)
    places = [Shelved(store=shared, recipe=Recipe("rank", {"rank": rank})) for rank in range(4)]
    sabotage(4, kills=2, number=signal.SIGSTOP)
    jobs = [RankJob(plan=plan, rank=rank, place=place) for rank, place in enumerate(places)]
    patience = Patience(silent_s=4, elsewhere_s=10)
    listener = Listener()
    convert_ranks(jobs, RayJobs(workers=2, needs=Needs(), patience=patience), listener)
    assert all("no sign of life for" in cause for _, _, cause in listener.lost)
    assert sorted(listener.finished) == [0, 1, 2, 3] and sound(tmp_path / "store") == {"rank": 4}
    go(model, tmp_path / "undisturbed", **LAYOUT)
    for place in places:
        with store.open(place.recipe.key) as entry:
            (name,) = entry.manifest.files
            assert entry.path(name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
