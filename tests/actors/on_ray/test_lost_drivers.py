"""Drivers that are killed or told to stop, and nodes that are lost: what is done stays, the rest goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from builders.store import Home, Store
from cluster.job_record import JobRecord, job_id, read_record
from tests.actors.on_ray.clusters import idle_head
from tests.actors.on_ray.test_killed_jobs import sound
from tests.actors.on_ray.test_ray_jobs import pid_of
from tests.cluster.test_build_source import from_source
from tests.cluster.test_cli import ROOT, rankforge
from tests.cluster.test_convert import content
from tests.tiny import llama_config

LAYOUT = {"tp_size": 2, "pp_size": 2, "no_compile": True}
FLAGS = ("--tp_size", 2, "--pp_size", 2, "--no_compile")
Flags = tuple[str | int, ...]
LIMIT_S = 200


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of weights that take seconds to make up."""
    folder = tmp_path_factory.mktemp("lost")
    llama_config(vocab_size=48_000, hidden_size=512, intermediate_size=4096).save_pretrained(folder)
    return folder / "config.json"


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "engine"
    from_source(out, model_config=str(config), **LAYOUT)
    return content(out)


class Driver:
    """A build in a process of its own, by the workers of a cluster."""

    def __init__(
        self, config: Path, out: Path, address: str, url: str | None = None, flags: Flags = FLAGS
    ) -> None:
        self.out, self.place = out, url or str(out.parent / "store")
        self.store = Store(out.parent / "store", home=Home(url) if url else None)
        self.command = ["build", "--model_config", config, "--output_dir", out, *flags]
        self.command += ["--store_dir", self.place, "--address", address, "--workers", 2]
        self.command += ["--store_cache", self.store.root] if url else []
        self.process = self.start()

    def start(self) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "cluster", *map(str, self.command)]
        self.process = subprocess.Popen(
            line, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        return self.process

    @property
    def job(self) -> str:
        return job_id("build", str(self.out))

    def record(self, until: Callable[[JobRecord], bool]) -> JobRecord:
        """The job's, as soon as it says so."""
        deadline = time.monotonic() + LIMIT_S
        while (record := read_record(self.store.notes, self.job)) is None or not until(record):
            assert time.monotonic() < deadline, record
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)
        return record

    def ends(self, code: int, limit_s: float = LIMIT_S) -> str:
        out, err = self.process.communicate(timeout=limit_s)
        assert self.process.returncode == code, err
        return out + err


@pytest.fixture
def started() -> Iterator[list[Driver]]:
    """Those that a test starts are ended with it."""
    drivers: list[Driver] = []
    yield drivers
    for driver in drivers:
        driver.process.kill()
        driver.process.communicate()


def in_hand(record: JobRecord) -> list[int]:
    """The workers that have something to do."""
    return [pid_of(part.where) for part in record.parts if part.state == "in hand"]


def one_is_done(record: JobRecord) -> bool:
    return any(part.state == "done" for part in record.parts) and bool(in_hand(record))


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def made(store: Store) -> dict[str, int]:
    """When every rank's file was written."""
    return {
        entry.key: (store.root / "entries" / entry.key / "manifest.json").stat().st_mtime_ns
        for entry in store.listing()
    }


@pytest.mark.usefixtures("local_ray")
def test_a_driver_that_is_killed_is_submitted_again_and_goes_on(
    config: Path, undisturbed: dict[str, bytes], tmp_path: Path, started: list[Driver]
) -> None:
    driver = Driver(config, tmp_path / "engine", ray.get_runtime_context().gcs_address)
    started.append(driver)
    record = driver.record(one_is_done)
    driver.process.kill()
    driver.ends(-signal.SIGKILL)
    assert gone(in_hand(record)) and not driver.out.exists()
    listed = json.loads(rankforge("jobs", "list", "--store_dir", driver.place, "--json").stdout)
    assert [(job["id"], job["state"]) for job in listed["jobs"]] == [(driver.job, "lost")]

    before = made(driver.store)
    driver.start()
    driver.ends(0)
    assert before and before.items() <= made(driver.store).items(), "what was done is not done again"
    assert content(driver.out) == undisturbed
    assert sound(driver.store.root) == {"checkpoint": 1, "rank": 4, "torch-program": 4}
    found = read_record(driver.store.notes, driver.job)
    assert found and (found.state, found.runs) == ("done", 2)
    followed = rankforge("jobs", "follow", driver.job, "--store_dir", driver.place)
    assert followed.returncode == 0 and "100%" in followed.stderr


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("afar", [False, True])
def test_a_job_is_cancelled_from_elsewhere(
    config: Path, tmp_path: Path, started: list[Driver], afar: bool
) -> None:
    url = f"file://{tmp_path}/home" if afar else None
    driver = Driver(config, tmp_path / "engine", ray.get_runtime_context().gcs_address, url)
    started.append(driver)
    record = driver.record(lambda record: bool(in_hand(record)))
    done = rankforge("jobs", "cancel", driver.job, "--store_dir", driver.place)
    assert (done.returncode, done.stdout) == (0, f"{driver.job}: cancelled\n"), done.stderr
    assert "error: cancelled, as was asked for" in driver.ends(1)
    assert gone(in_hand(record)) and not driver.out.exists()
    assert set(sound(driver.store.root)) <= {"rank", "checkpoint"}, "no engine"
    again = rankforge("jobs", "cancel", driver.job, "--store_dir", driver.place)
    assert again.returncode == 2 and "is cancelled already" in again.stderr
    followed = rankforge("jobs", "follow", driver.job, "--store_dir", driver.place)
    assert followed.returncode == 1 and f"error: {driver.job}: cancelled" in followed.stderr


@pytest.mark.usefixtures("local_ray")
def test_ctrl_c_stops_the_workers(config: Path, tmp_path: Path, started: list[Driver]) -> None:
    driver = Driver(config, tmp_path / "engine", ray.get_runtime_context().gcs_address)
    started.append(driver)
    record = driver.record(lambda record: bool(in_hand(record)))
    driver.process.send_signal(signal.SIGINT)
    driver.ends(130)
    assert gone(in_hand(record)) and not driver.out.exists()
    found = read_record(driver.store.notes, driver.job)
    assert found and found.state == "cancelled"


@pytest.fixture
def three_nodes() -> Iterator[str]:
    with idle_head(num_nodes=2) as cluster:
        yield cluster.address


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def lose_node_of(pid: int, *, whole: bool) -> None:
    """A raylet ends, and then its node's other processes: nobody starts new ones."""
    raylet = parent_of(pid)
    assert Path(f"/proc/{raylet}/comm").read_text() == "raylet\n"
    children = [child for child in map(int, filter(str.isdigit, os.listdir("/proc"))) if is_of(child, raylet)]
    for process in (raylet, *children) if whole else (raylet,):
        os.kill(process, signal.SIGKILL)


def is_of(child: int, raylet: int) -> bool:
    try:
        return parent_of(child) == raylet
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("whole", [True, False])
def test_a_node_is_lost(
    three_nodes: str,
    config: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    started: list[Driver],
    whole: bool,
) -> None:
    """All of its processes, or its raylet alone, without which the others end by themselves."""
    driver = Driver(config, tmp_path / "engine", three_nodes)
    started.append(driver)
    record = driver.record(lambda record: bool(in_hand(record)))
    lose_node_of(in_hand(record)[0], whole=whole)
    told = driver.ends(0)
    assert content(driver.out) == undisturbed
    assert sound(driver.store.root) == {"checkpoint": 1, "rank": 4, "torch-program": 4}
    said = re.search(r"rank \d on node \S+ \(pid \d+\): its process died", told)
    assert said or not whole, "without its raylet alone, a worker may end what it has in hand"
