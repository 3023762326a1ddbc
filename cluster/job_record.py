"""What is known of a job while it runs and afterwards: a small file in the store, replaced whole."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from builders.errors import ArtifactError, ConfigError, UserError
from builders.keys import content_key
from builders.plain import from_json
from builders.store import Notes
from cluster.progress import Unit

SILENT_S = 15.0
"""A driver that has not written for so long is lost: killed, stopped or cut off."""

_JOB, _CANCEL = "job-", "cancel-"

State = Literal["running", "done", "failed", "cancelled", "lost"]
PartState = Literal["open", "in hand", "done"]


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """A rank or a unit."""

    name: str
    size: int
    number: int = 0
    """Of the rank; units are counted."""
    done: int = 0
    state: PartState = "open"
    where: str = ""
    """Node and process that have it in hand, or had it last."""
    failures: tuple[str, ...] = ()
    """Where and why attempts were lost."""


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A conversion or a build."""

    id: str
    verb: str
    run: str
    """Tells a job from the one that is submitted again."""
    runs: int
    """How often it was submitted."""
    output: str
    command: tuple[str, ...]
    """To submit it again."""
    host: str
    """Where its driver is."""
    pid: int
    state: State
    began_s: float
    """Seconds since the epoch, as all times here."""
    heard_s: float
    """When the driver wrote last."""
    label: str = ""
    """Of what is under way."""
    unit: Unit = "bytes"
    parts: tuple[PartRecord, ...] = ()
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @property
    def driver(self) -> str:
        """For people."""
        return f"{self.host} (pid {self.pid})"

    @property
    def state_now(self) -> State:
        """A driver that says nothing any more is lost, whatever it said last."""
        return "lost" if self.state == "running" and self._is_silent else self.state

    @property
    def _is_silent(self) -> bool:
        is_gone = self.host == socket.gethostname() and not Path(f"/proc/{self.pid}").exists()
        return is_gone or time.time() - self.heard_s > SILENT_S


def job_id(verb: str, output: str) -> str:
    """The same for a job that is submitted again."""
    return f"{verb}-{content_key(output=output)[:8]}"


def write_record(notes: Notes, record: JobRecord) -> None:
    """In the place of what was there."""
    notes.write(_JOB + record.id, json.dumps(record.to_json()).encode())


def read_record(notes: Notes, job: str) -> JobRecord | None:
    """None where there is none that can be read."""
    data = notes.read(_JOB + job) if job and "/" not in job and job.isprintable() else None
    try:
        return from_json(JobRecord, json.loads(data or b""))
    except (ValueError, RecursionError, ConfigError):
        return None


def records(notes: Notes) -> list[JobRecord]:
    """Every job, the one begun last first."""
    names = notes.names(_JOB)
    found = [read_record(notes, name.removeprefix(_JOB)) for name in names]
    return sorted((record for record in found if record), key=lambda record: -record.began_s)


def known_record(notes: Notes, job: str) -> JobRecord:
    """The one with this name, or an error that says which there are."""
    record = read_record(notes, job)
    if record is None:
        raise UserError(f"{job}: no such job; `rankforge jobs list` with this --store_dir shows them")
    return record


def ask_to_stop(notes: Notes, record: JobRecord) -> None:
    """The driver of this very run will hear of it; one that is lost cannot."""
    notes.write(_CANCEL + record.id, record.run.encode())
    if record.state_now == "lost":
        write_record(notes, replace(record, state="cancelled"))


def is_to_stop(notes: Notes, record: JobRecord) -> bool:
    """Whether somebody has asked."""
    return notes.read(_CANCEL + record.id) == record.run.encode()


def free_id(notes: Notes, verb: str, output: str) -> tuple[str, int]:
    """A name that no running job has, and how often it was submitted before."""
    for number in range(1, 100):
        name = job_id(verb, output) + (f"-{number}" if number > 1 else "")
        record = read_record(notes, name)
        if record is None or record.state_now != "running":
            return name, record.runs if record else 0
    raise ArtifactError(f"{output}: a hundred jobs make this already; wait for them, or cancel some")


def with_part(parts: Sequence[PartRecord], number: int, **changes: Any) -> tuple[PartRecord, ...]:
    """The parts, of which one has changed."""
    return (*parts[:number], replace(parts[number], **changes), *parts[number + 1 :])
