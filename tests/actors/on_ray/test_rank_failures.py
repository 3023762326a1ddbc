"""Ranks that die, stop, raise or wait for ever: the group ends in time and says which, where and why."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from actors.messages import Beams, Order, StepResult, encode
from actors.rank_actors import Room, here
from actors.rank_group import GroupPlan, RankGroup
from actors.vigil import Bounds
from builders.errors import ArtifactError, PeerError, WorkerError
from builders.mapping import Mapping
from tests.actors.engines import NUM_BLOCKS, PROMPTS, engine, first_step, next_step
from tests.tiny import save_llama

pytestmark = pytest.mark.usefixtures("local_ray")

LONG = 3000.0
"""A bound that no test lives to see: something else has to end the wait."""


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("failures")
    save_llama(folder / "model")
    layouts = {"1": Mapping(), "tp2": Mapping(tp_size=2), "pp2": Mapping(pp_size=2)}
    yield {name: engine(folder / "model", mapping, folder / name) for name, mapping in layouts.items()}


def group(folder: Path, *, inside: bool = True, room: Room | None = None, **bounds: float) -> RankGroup:
    limits = Bounds(**{"start_s": 100.0, "silent_s": LONG, "wait_s": LONG, "step_s": LONG, **bounds})
    return RankGroup(
        GroupPlan(
            engine_dir=folder,
            blocks=lambda _free_bytes: NUM_BLOCKS,
            kind="gloo",
            inside=inside,
            room=room or Room(),
            bounds=limits,
        )
    )


def answered(opened: RankGroup, order: Order) -> StepResult:
    opened.submit(order)
    return opened.collect()


FIRST, SECOND = first_step(PROMPTS[:1]), next_step(1, [5])


def named(opened: RankGroup, rank: int) -> str:
    where = opened.where[rank]
    return re.escape(f"rank {rank} on node {where.host} (pid {where.pid}): ")


CASES = [("tp2", True, 1), ("tp2", False, 0), ("pp2", True, 1), ("pp2", False, 0), ("1", False, 0)]
"""Layout, whether rank 0 is in this process, and whom it strikes."""


@pytest.mark.parametrize(("layout", "inside", "struck"), CASES)
def test_a_killed_rank(layout: str, inside: bool, struck: int, engines: dict[str, Path]) -> None:
    """Noticed at once: no bound is near."""
    with group(engines[layout], inside=inside) as opened:
        answered(opened, FIRST)
        os.kill(opened.where[struck].pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match=named(opened, struck) + r"its process died \(Worker unexp"):
            answered(opened, SECOND)
        with pytest.raises(WorkerError, match=named(opened, struck)):  # it stays so
            answered(opened, SECOND)
    no_process_is_left(opened)


@pytest.mark.parametrize(("layout", "inside", "struck"), CASES[:2])
def test_a_stopped_rank(layout: str, inside: bool, struck: int, engines: dict[str, Path]) -> None:
    with group(engines[layout], inside=inside, silent_s=6.0) as opened:
        answered(opened, FIRST)
        os.kill(opened.where[struck].pid, signal.SIGSTOP)
        with pytest.raises(WorkerError, match=named(opened, struck) + r"no sign of life for \d+\.\d s"):
            answered(opened, SECOND)
    no_process_is_left(opened)


def test_a_stopped_rank_of_another_node(engines: dict[str, Path]) -> None:
    spread = Room(strategy="STRICT_SPREAD")
    with group(engines["tp2"], inside=False, silent_s=6.0, room=spread) as opened:
        (far,) = (rank for rank, where in opened.where.items() if where.node != here().node)
        answered(opened, FIRST)
        os.kill(opened.where[far].pid, signal.SIGSTOP)
        with pytest.raises(WorkerError, match=named(opened, far) + "no sign of life for "):
            answered(opened, SECOND)
    no_process_is_left(opened)


def test_idle_groups_are_watched(engines: dict[str, Path]) -> None:
    with group(engines["tp2"]) as opened:
        os.kill(opened.where[1].pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        with pytest.raises(WorkerError, match=named(opened, 1)):
            while time.monotonic() < deadline:
                opened.check()
                time.sleep(0.01)


def test_a_rank_that_raises(engines: dict[str, Path]) -> None:
    """Only the last stage chooses, and knows of no such search."""
    unheard = msgspec.structs.replace(FIRST.plan, beams=(Beams("nobody", (0,), (0.0,)),))
    with group(engines["pp2"]) as opened:
        opened.submit(Order(unheard))
        with pytest.raises(WorkerError, match=named(opened, 1) + "KeyError: 'nobody'"):
            opened.collect()


def test_a_rank_that_has_raised_takes_no_orders(engines: dict[str, Path]) -> None:
    """What it raised is told, though that is heard of later."""
    with group(engines["pp2"]) as opened, ThreadPoolExecutor(1) as pool:
        may_hear, hear = threading.Event(), opened._vigil._hear
        opened._vigil._hear = lambda: may_hear.wait(60) and hear()  # type: ignore[method-assign]
        with pytest.raises(PeerError, match="rank 1: does not take its orders"):
            while True:
                opened._head.send(1, b"\xc1 is no order")
                time.sleep(0.01)
        submitting = pool.submit(opened.submit, FIRST)
        while opened._vigil._suspicion is None and not submitting.done():
            time.sleep(0.01)
        may_hear.set()
        with pytest.raises(WorkerError, match=named(opened, 1) + "DecodeError: "):
            submitting.result()


def test_this_process_own_rank_raises(engines: dict[str, Path]) -> None:
    """It is told as others' mistakes are."""
    unheard = msgspec.structs.replace(FIRST.plan, beams=(Beams("nobody", (0,), (0.0,)),))
    with group(engines["tp2"]) as opened, pytest.raises(WorkerError, match=r"KeyError: 'nobody'") as raised:
        opened.submit(Order(unheard))
    assert str(raised.value).startswith(f"rank 0 on node {here().host} (pid {os.getpid()}): ")
    assert isinstance(raised.value.__cause__, KeyError)


def test_a_rank_that_cannot_load(engines: dict[str, Path], tmp_path: Path) -> None:
    """The others wait for it, in this process too, and are told why."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in engines["tp2"].iterdir():
        if file.name != "rank1.safetensors":
            (broken / file.name).symlink_to(file)
    with pytest.raises(
        WorkerError, match=r"rank 1 on node [\d.]+ \(pid \d+\): \w+Error: .*rank1.safetensors"
    ) as raised:
        group(broken)
    assert isinstance(raised.value.__cause__, ArtifactError)


def test_a_rank_that_waits_in_vain(engines: dict[str, Path]) -> None:
    """The order reaches the second stage alone: whom it waited for is said."""
    with group(engines["pp2"], inside=False, wait_s=1.0, silent_s=8.0) as opened:
        opened._head.send(1, encode(FIRST))
        with pytest.raises(WorkerError, match=r"^rank 1: receive in group line0: no answer from rank 0 \("):
            opened.collect()


def test_a_step_without_end(engines: dict[str, Path]) -> None:
    """Everyone is alive and nobody's wait has ended."""
    with group(engines["pp2"], inside=False, step_s=1.0) as opened:
        opened._head.send(1, encode(FIRST))
        opened._vigil.began(0)
        with pytest.raises(WorkerError, match=r"^step 0 is not done after 1 s; not through it: rank 0 on"):
            opened.collect()


def test_no_room(engines: dict[str, Path]) -> None:
    plan = GroupPlan(
        engine_dir=engines["tp2"],
        blocks=lambda _free_bytes: NUM_BLOCKS,
        kind="gloo",
        room=Room(num_cpus=1000),
        bounds=Bounds(start_s=1),
    )
    with pytest.raises(WorkerError, match=r"Ray has no room for 1 ranks of {'CPU': 1000} in time; free some"):
        RankGroup(plan)


def no_process_is_left(closed: RankGroup) -> None:
    """Those of another node are Ray's to end, which takes some seconds."""
    deadline = time.monotonic() + 60
    while not all(is_gone(where.pid) for where in closed.where.values()):
        assert time.monotonic() < deadline, "a rank lives on"
        time.sleep(0.05)


def is_gone(pid: int) -> bool:
    """Whether it does not run any more; one that nobody has waited for yet is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True
