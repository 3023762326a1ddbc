"""Drivers and nodes that are lost while engines are compiled: no unit that is done is compiled again."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
import ray

from cluster.job_record import JobRecord, read_record
from tests.actors.on_ray.test_killed_jobs import sound
from tests.actors.on_ray.test_lost_drivers import Driver, gone, in_hand, lose_node_of, made
from tests.actors.on_ray.test_lost_drivers import started as started
from tests.actors.on_ray.test_lost_drivers import three_nodes as three_nodes
from tests.cluster.test_build_source import from_source
from tests.cluster.test_convert import content
from tests.tiny import llama_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FLAGS = ("--tp_size", 2, "--pp_size", 2)
WHOLE = {"checkpoint": 1, "rank": 4, "torch-program": 4}
LIMIT_S = 900
"""Compilers take their time where much else is going on."""
LONGEST_S = 12.0
"""Of a build of these units by two workers, on a machine that has nothing else to do."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lost")
    llama_config().save_pretrained(folder)
    return folder / "config.json"


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "engine"
    from_source(out, model_config=str(config), tp_size=2, pp_size=2, no_compile=False)
    return content(out)


def builds(record: JobRecord) -> bool:
    return record.unit == "percent" and bool(in_hand(record))


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("seed", [0, 1])
def test_a_driver_is_killed_while_it_builds(
    config: Path, undisturbed: dict[str, bytes], tmp_path: Path, started: list[Driver], seed: int
) -> None:
    driver = Driver(config, tmp_path / "engine", ray.get_runtime_context().gcs_address, flags=FLAGS)
    started.append(driver)
    driver.record(builds)
    time.sleep(random.Random(seed).uniform(0, LONGEST_S))
    driver.process.kill()
    driver.process.communicate()
    record = read_record(driver.store.notes, driver.job)
    assert record and gone(in_hand(record))

    before = made(driver.store)
    driver.start()
    driver.ends(0, LIMIT_S)
    assert len(before) >= 5 and before.items() <= made(driver.store).items(), "nothing is done twice"
    assert content(driver.out) == undisturbed and sound(driver.store.root) == WHOLE


def test_a_node_is_lost_while_it_builds(
    three_nodes: str,
    config: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    started: list[Driver],
) -> None:
    driver = Driver(config, tmp_path / "engine", three_nodes, flags=FLAGS)
    started.append(driver)
    record = driver.record(builds)
    lost = next(part for part in record.parts if part.state == "in hand")
    lose_node_of(in_hand(record)[0], whole=True)
    told = driver.ends(0, LIMIT_S)
    assert f"{lost.name} on {lost.where}: its process died" in told
    assert content(driver.out) == undisturbed and sound(driver.store.root) == WHOLE


@pytest.mark.usefixtures("local_ray")
def test_ctrl_c_stops_compilers_too(config: Path, tmp_path: Path, started: list[Driver]) -> None:
    driver = Driver(config, tmp_path / "engine", ray.get_runtime_context().gcs_address, flags=FLAGS)
    started.append(driver)
    record = driver.record(builds)
    driver.process.send_signal(signal.SIGINT)
    driver.ends(130, LIMIT_S)
    assert gone(in_hand(record)) and not driver.out.exists()
    assert set(sound(driver.store.root)) <= set(WHOLE)
