"""What is known of jobs, how it is shown, and how jobs are stopped: all but the workers."""

from __future__ import annotations

import io
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from builders.errors import JobCancelled, UserError, WorkerError
from builders.store import Store
from cluster.cluster_options import ClusterOptions
from cluster.job_commands import cancel, follow, jobs, show
from cluster.job_log import JobLog
from cluster.job_record import JobRecord, free_id, known_record, read_record, write_record
from cluster.jobs import Crew, resources_of, room
from cluster.progress import LineReporter

OUTPUT = "/mnt/rankforge/engines/a-folder-with-a-long-name/engine"


def lines(stream: io.StringIO, *, as_json: bool = False) -> LineReporter:
    return LineReporter(stream, as_json=as_json)


def two_ranks(log: JobLog, stream: io.StringIO) -> None:
    """The last two of four: one is converted, the other is found, as another job has made it meanwhile."""
    crew = Crew(options=ClusterOptions(), on_cluster=False, report=lines(stream, as_json=True), log=log)
    with crew.phase("convert m", ["rank 2", "rank 3"], [100, 50], numbers=[2, 3]) as phase:
        phase.began(0, "node a (pid 1)")
        phase.advanced(0, 70)
        phase.failed(0, "node a (pid 1)", "its process died")
        phase.advanced(0, -70)
        phase.began(0, "node b (pid 2)")
        phase.advanced(0, 100)
        phase.done(0)
        phase.began(1, "node b (pid 2)")
        phase.done(1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def a_job(store: Store, state: str = "done", error: str = "") -> JobRecord:
    log = JobLog(store, "build", OUTPUT)
    two_ranks(log, io.StringIO())
    log.close(state, error)  # type: ignore[arg-type]
    (record,) = jobs(store.root)
    return record


def test_what_is_found_is_done_too(store: Store) -> None:
    stream, log = io.StringIO(), JobLog(store, "build", OUTPUT)
    two_ranks(log, stream)
    log.close("done")
    last = json.loads(stream.getvalue().splitlines()[-1])
    assert (last["done"], last["total"], last["whole"]) == (150, 150, 2)
    (record,) = jobs(store.root)
    assert [(part.number, part.done, part.state) for part in record.parts] == [
        (2, 100, "done"),
        (3, 50, "done"),
    ]
    assert record.parts[0].failures == ("node a (pid 1): its process died",)


@pytest.mark.parametrize("width", [60, 200])
def test_a_list_cuts_nothing_off(store: Store, width: int) -> None:
    record, stream = a_job(store, "failed", "rank 3: no space left"), io.StringIO()
    show([record], Console(file=stream, width=width))
    letters = "".join(letter for letter in stream.getvalue() if not letter.isspace() and letter not in "│┃")
    assert f"{record.id}: rank 3: no space left" in stream.getvalue()
    if width == 200:
        assert f"build{OUTPUT}" in letters and "100%,2of2ranks" in letters
    assert "…" not in letters


def test_a_store_without_jobs(store: Store) -> None:
    stream = io.StringIO()
    show([], Console(file=stream))
    assert stream.getvalue() == "no jobs\n"


def test_following_shows_ranks_by_their_numbers(store: Store) -> None:
    record, stream = a_job(store), io.StringIO()
    assert follow(store.root, record.id, lines(stream, as_json=True)).state == "done"
    said = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert {line["rank"] for line in said if "size" in line} == {2, 3}
    assert [line["lost"] for line in said if "lost" in line] == ["rank 2 on node a (pid 1): its process died"]
    assert said[-1]["done"] == 150


def test_a_driver_that_is_gone(store: Store) -> None:
    """Its process is no more, or it is on another machine and has not written for long."""
    record = a_job(store)
    gone = replace(record, state="running", pid=2**22 + 1, command=("build", "--output_dir", "a b"))
    silent = replace(gone, pid=os.getpid(), heard_s=record.heard_s - 60)
    for lost in (gone, silent):
        write_record(store.notes, lost)
        with pytest.raises(
            WorkerError, match=r"lost; its driver, .* go on with `rankforge build --output_dir 'a b'`"
        ):
            follow(store.root, record.id, lines(io.StringIO()))
    assert cancel(store.root, record.id).state == "cancelled"


def test_a_job_is_asked_to_stop(store: Store) -> None:
    log = JobLog(store, "build", OUTPUT)
    log.phase("convert m", ["rank 0"], [10], "bytes")
    (record,) = jobs(store.root)
    stopped = threading.Event()

    def drive() -> None:
        while not stopped.wait(0.05):
            try:
                log.check()
            except JobCancelled as error:
                log.close("cancelled", str(error))
                return

    driver = threading.Thread(target=drive)
    driver.start()
    try:
        assert cancel(store.root, record.id).state == "cancelled"
    finally:
        stopped.set()
        driver.join()
    with pytest.raises(UserError, match="is cancelled already; only what runs can be cancelled"):
        cancel(store.root, record.id)


def test_a_job_that_runs_keeps_its_name(store: Store) -> None:
    running = JobLog(store, "build", OUTPUT)
    running.phase("convert m", ["rank 0"], [10], "bytes")
    name, runs = free_id(store.notes, "build", OUTPUT)
    (record,) = jobs(store.root)
    assert (name, runs) == (f"{record.id}-2", 0)
    running.close("failed", "no")
    assert free_id(store.notes, "build", OUTPUT) == (record.id, 1)


@pytest.mark.parametrize("job", ["", "../x", "a/b", "nope", "line\nbreak"])
def test_no_such_job(store: Store, job: str) -> None:
    with pytest.raises(UserError, match="no such job; `rankforge jobs list`"):
        known_record(store.notes, job)


@pytest.mark.parametrize("data", [b"", b"[" * 100_000, b'{"id": 3}', b"\xff", b"null"])
def test_a_record_that_is_damaged_is_none(store: Store, data: bytes) -> None:
    record = a_job(store)
    store.notes.write(f"job-{record.id}", data)
    assert read_record(store.notes, record.id) is None and jobs(store.root) == []


@pytest.mark.parametrize("text", ["rtx", "=1", "rtx=", "rtx=0", "rtx=-1", "rtx=nan", "rtx=inf", "rtx=1=2"])
def test_what_is_no_resource(text: str) -> None:
    with pytest.raises(UserError, match="not a resource; write name=amount"):
        resources_of([text])


def test_room_is_what_nodes_that_live_have() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 8.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    assert room(nodes, {"CPU": 1}, one_core=True) == 12 and room(nodes, {"CPU": 1}, one_core=False) == 2
    assert room(nodes, {"CPU": 1, "GPU": 1}, one_core=True) == 2
    assert room(nodes, {"CPU": 1, "rtx": 1}, one_core=True) == 1, "a cluster may grow for one"
