"""Workers that die, stop, raise or are not wanted any more: what they had in hand is done again."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.executor import Unheard
from actors.ray_jobs import Patience, RayJobs
from actors.ray_worker import Needs, elsewhere
from builders.errors import JobCancelled, SourceError, WorkerError
from tests.actors.ray_work import die_or_double, divide, double, end_once, fall, refuse, sleep

pytestmark = pytest.mark.usefixtures("local_ray")

QUICK = Patience(silent_s=4, elsewhere_s=10)


class Listener(Unheard):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.where: dict[int, list[str]] = {}
        self.lost: list[tuple[int, str, str]] = []
        self.amount: dict[int, int] = {}
        self.finished: list[int] = []

    def began(self, job: int, where: str) -> None:
        self.where.setdefault(job, []).append(where)

    def advanced(self, job: int, amount: int) -> None:
        self.amount[job] = self.amount.get(job, 0) + amount

    def done(self, job: int) -> None:
        self.finished.append(job)

    def failed(self, job: int, where: str, cause: str) -> None:
        self.lost.append((job, where, cause))


@pytest.fixture
def listener() -> Iterator[Listener]:
    """When a run is over, none of its workers is left."""
    listener = Listener()
    yield listener
    deadline = time.monotonic() + 30
    for where in (where for each in listener.where.values() for where in each):
        while os.path.exists(f"/proc/{pid_of(where)}"):
            assert time.monotonic() < deadline, f"{where} is left"
            time.sleep(0.02)


def pid_of(where: str) -> int:
    found = re.fullmatch(r"node \S+ \(pid (\d+)\)", where)
    assert found, where
    return int(found[1])


def carry_out(work: Any, jobs: list[Any], listener: Listener, **terms: Any) -> list[Any]:
    executor = RayJobs(**{"workers": 2, "needs": Needs(), "patience": QUICK, **terms})
    return executor.run(work, jobs, [f"rank {number}" for number in range(len(jobs))], listener)


def test_results_come_in_the_order_of_the_jobs(listener: Listener) -> None:
    assert carry_out(double, list(range(6)), listener) == [0, 2, 4, 6, 8, 10]
    assert sorted(listener.finished) == list(range(6)) and not listener.lost
    assert len({where for each in listener.where.values() for where in each}) <= 2


def test_late_news_of_a_job_is_not_of_the_next(listener: Listener) -> None:
    carry_out(fall, list(range(60)), listener, workers=1)
    assert listener.amount == {job: 1000 - job for job in range(60)}


def test_workers_that_are_kept_work_again(listener: Listener) -> None:
    """Until they are no longer wanted; who was lost meanwhile is replaced."""
    jobs = RayJobs(workers=2, needs=Needs(), patience=QUICK, keep=True)
    later = Listener()
    try:
        for each in (listener, listener, later):
            if each is later:
                os.kill(pid_of(listener.where[0][0]), signal.SIGKILL)
            assert jobs.run(double, [1, 2, 3], ["a", "b", "c"], each) == [2, 4, 6]
    finally:
        jobs.close()
    assert len({where for each in listener.where.values() for where in each}) <= 2
    assert listener.where[0][0] not in [each[-1] for each in later.where.values()]
    listener.where |= {3 + job: each for job, each in later.where.items()}


def test_who_has_not_listened_blames_nobody(listener: Listener) -> None:
    """A driver that was stopped for longer than workers may be silent."""

    class Deaf(Listener):
        def look(self) -> None:
            if self.amount and not self.stopped:
                self.stopped = True
                time.sleep(8)

        stopped = False

    deaf = Deaf()
    carry_out(fall, [1, 2, 3, 4], deaf, patience=Patience(silent_s=2))
    assert deaf.stopped and not deaf.lost
    listener.where = deaf.where


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_what_a_lost_worker_had_in_hand_is_done_on_another_node(
    number: int, listener: Listener, tmp_path: Path
) -> None:
    (second,) = carry_out(end_once, [(tmp_path / "mark", number)], listener)
    ((job, where, cause),) = listener.lost
    assert job == 0 and where == listener.where[0][0] and len(listener.where[0]) == 2
    assert ("no sign of life for" if number == signal.SIGSTOP else "its process died") in cause
    assert second != (tmp_path / "node").read_text()
    assert listener.finished == [0] and listener.amount == {0: 10}


def test_a_job_that_always_kills_its_worker_is_named_once(listener: Listener) -> None:
    pattern = r"^rank 1: failed 3 times, last on node \S+ \(pid \d+\): its process died \(.+\); what is done"
    with pytest.raises(WorkerError, match=pattern):
        carry_out(die_or_double, [0, 1, 2, 3], listener)
    assert [job for job, _, _ in listener.lost] == [1, 1, 1]
    assert sorted(listener.finished) == [0, 2, 3]


def test_a_bug_is_named(listener: Listener) -> None:
    with pytest.raises(
        WorkerError, match=r"rank 0: failed 3 times.* ZeroDivisionError: division by zero; what"
    ):
        carry_out(divide, [0], listener)


def test_what_the_user_can_fix_is_not_tried_again(listener: Listener) -> None:
    with pytest.raises(SourceError, match=r"^rank 0 on node \S+ \(pid \d+\): bad.bin: not a checkpoint$"):
        carry_out(refuse, ["bad.bin"], listener)
    assert len(listener.lost) == 1


def test_whoever_listens_can_end_it(listener: Listener) -> None:
    class Impatient(Listener):
        def look(self) -> None:
            if len(self.where) == 2:
                raise JobCancelled("enough")

    impatient = Impatient()
    with pytest.raises(JobCancelled, match="enough"):
        carry_out(sleep, [0, 1, 2], impatient)
    listener.where = impatient.where


def test_no_room_is_said_in_time(listener: Listener) -> None:
    needs = Needs(num_gpus=1, resources={"rtx": 1})
    with pytest.raises(WorkerError, match=r"no room for a worker of 1 CPU, 1 GPU, 1 rtx in 2 s; free some"):
        carry_out(double, [1], listener, needs=needs, patience=Patience(start_s=2))


def test_more_workers_than_there_is_room_for_do_no_harm(listener: Listener) -> None:
    """Eight CPUs a node: two workers run, the others are asked for in vain."""
    needs = Needs(num_cpus=8)
    assert carry_out(double, list(range(4)), listener, workers=4, needs=needs) == [0, 2, 4, 6]


def test_elsewhere_is_a_living_node_with_room() -> None:
    nodes = [
        {"NodeID": "a", "Alive": True, "Resources": {"CPU": 8}},
        {"NodeID": "b", "Alive": False, "Resources": {"CPU": 8, "GPU": 1}},
        {"NodeID": "c", "Alive": True, "Resources": {"CPU": 8, "GPU": 1}},
    ]
    assert elsewhere(nodes, {"CPU": 1}, {"a"}) == "c"
    assert elsewhere(nodes, {"CPU": 1, "GPU": 1}, {"c"}) is None
    assert elsewhere(nodes, {"CPU": 1}, ()) is None
