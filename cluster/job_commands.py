"""`rankforge jobs`: what conversions and builds a store knows of, how far they are, and stopping them."""

from __future__ import annotations

import shlex
import time

from rich.console import Console
from rich.table import Table

from builders.errors import UserError, WorkerError
from builders.store import Notes
from cluster.job_record import SILENT_S, JobRecord, ask_to_stop, known_record, records
from cluster.progress import PARTS, Reporter
from cluster.store_place import Place, existing_store

_LOOK_S = 0.5


def jobs(place: Place) -> list[JobRecord]:
    """All of them, the one begun last first."""
    return records(_notes(place))


def show(found: list[JobRecord], console: Console) -> None:
    """A line a job, and what went wrong; nothing is cut off, however narrow a log is."""
    if not found:
        console.print("no jobs")
        return
    table = Table(title=_number(found))
    for name in ("job", "state", "what", "done", "failures", "begun", "driver"):
        table.add_column(name, no_wrap=name == "job", overflow="fold")
    for record in found:
        begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.began_s))
        failures = sum(len(part.failures) for part in record.parts)
        parts = f"{_whole(record)} of {len(record.parts)} {PARTS[record.unit]}s"
        what = f"{record.verb} {record.output}"
        facts = (f"{_share(record)}%, {parts}", str(failures), begun, record.driver)
        table.add_row(record.id, record.state_now, what, *facts)
    console.print(table)
    for record in found:
        if remark := _remark(record):
            console.print(f"{record.id}: {remark}", highlight=False, markup=False)


def _number(found: list[JobRecord]) -> str:
    return "1 job" if len(found) == 1 else f"{len(found)} jobs"


def follow(place: Place, job: str, report: Reporter) -> JobRecord:
    """Show how far a job is until it is over; raises what ended it otherwise than well."""
    notes = _notes(place)
    shown = _Shown(report)
    try:
        while (record := known_record(notes, job)).state_now == "running":
            shown.show(record)
            time.sleep(_LOOK_S)
        shown.show(record)
    finally:
        shown.close()
    if record.state_now != "done":
        raise WorkerError(f"{job}: {record.state_now}; {_remark(record)}")
    return record


def cancel(place: Place, job: str) -> JobRecord:
    """Ask the driver to stop, and wait until it has, or is known to be lost."""
    notes = _notes(place)
    record = known_record(notes, job)
    if record.state_now not in ("running", "lost"):
        raise UserError(f"{job}: is {record.state_now} already; only what runs can be cancelled")
    ask_to_stop(notes, record)
    deadline = time.monotonic() + 2 * SILENT_S
    while (record := known_record(notes, job)).state_now == "running" and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
    if record.state_now == "lost":
        ask_to_stop(notes, record)
        record = known_record(notes, job)
    if record.state_now == "running":
        raise WorkerError(f"{job}: {record.driver} does not stop; end that process")
    return record


class _Shown:
    """What a reporter has been told of a job so far."""

    def __init__(self, report: Reporter) -> None:
        self._report = report
        self._record: JobRecord | None = None

    def show(self, record: JobRecord) -> None:
        before = self._record
        if before is None or _phase(before) != _phase(record):
            self.close()
            sizes, numbers = zip(*((part.size, part.number) for part in record.parts), strict=True)
            self._report.start(sizes, record.label, record.unit, numbers)
            before = None
        for number, part in enumerate(record.parts):
            known = before.parts[number] if before else None
            if part.done != (known.done if known else 0):
                self._report.advance(number, part.done - (known.done if known else 0))
            if part.state == "done" != (known.state if known else "open"):
                self._report.done(number)
            for failure in part.failures[len(known.failures) if known else 0 :]:
                self._report.lost(number, f"{part.name} on {failure}")
        self._record = record

    def close(self) -> None:
        if self._record is not None:
            self._report.finish()


def _phase(record: JobRecord) -> tuple[object, ...]:
    return record.run, record.label, tuple(part.name for part in record.parts)


def _share(record: JobRecord) -> int:
    return 100 * sum(part.done for part in record.parts) // max(1, sum(part.size for part in record.parts))


def _whole(record: JobRecord) -> int:
    return sum(part.state == "done" for part in record.parts)


def _remark(record: JobRecord) -> str:
    """What went wrong, and what is to be done."""
    if record.state_now == "lost":
        again = f"rankforge {shlex.join(record.command)}"
        return f"its driver, {record.driver}, is gone; what is done stays, go on with `{again}`"
    return record.error


def _notes(place: Place) -> Notes:
    return existing_store(place).notes
