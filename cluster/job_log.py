"""Keeps a job's record in the store up to date, from a thread that also hears of a wish to stop."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from builders.errors import ArtifactError, JobCancelled
from builders.store import Store
from cluster.job_record import JobRecord, State, free_id, is_to_stop, with_part, write_record
from cluster.job_record import PartRecord as Part
from cluster.progress import Unit

_EVERY_S = 0.5
_EVERY_AFAR_S = 1.5
"""To a store that is a URL, which may count what it is asked."""
_BEAT_S = 3.0
"""At least so often the driver writes, to be known alive."""


class JobLog:
    """Of one job. Nothing is written before there is work."""

    def __init__(self, store: Store, verb: str, output: str) -> None:
        self._notes, self._verb, self._output = store.notes, verb, output
        self._every_s = _EVERY_S if store.home is None else _EVERY_AFAR_S
        self._record: JobRecord | None = None
        self._changed, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep, name="job-log", daemon=True)
        self._cancelled = False
        self._written: JobRecord | None = None

    def phase(
        self,
        label: str,
        names: Sequence[str],
        sizes: Sequence[int],
        unit: Unit,
        numbers: Sequence[int] = (),
    ) -> None:
        """Other work begins."""
        facts = zip(names, sizes, numbers or range(len(sizes)), strict=True)
        parts = tuple(Part(name=name, size=size, number=number) for name, size, number in facts)
        if self._record is None:
            self._begin()
        self._change(label=label, parts=parts, unit=unit)
        self._write()

    def part(self, number: int, **changes: Any) -> None:
        """Something has become of a part."""
        with self._changed:
            assert self._record is not None, "a phase has begun"
            parts = with_part(self._record.parts, number, **changes)
            self._record = replace(self._record, parts=parts)

    def parts(self) -> tuple[Part, ...]:
        """As they are now."""
        return self._record.parts if self._record else ()

    def check(self) -> None:
        """Raise if somebody has asked to stop."""
        if self._cancelled:
            raise JobCancelled("cancelled, as was asked for; what is done stays in the store")

    def close(self, state: State, error: str = "") -> None:
        """The job is over."""
        if self._record is None:
            return
        self._over.set()
        self._thread.join()
        self._change(state=state, error=error)
        self._write()

    def _begin(self) -> None:
        name, runs = free_id(self._notes, self._verb, self._output)
        self._record = JobRecord(
            id=name,
            verb=self._verb,
            run=uuid.uuid4().hex,
            runs=runs + 1,
            output=self._output,
            command=tuple(sys.argv[1:]),
            host=socket.gethostname(),
            pid=os.getpid(),
            state="running",
            began_s=time.time(),
            heard_s=time.time(),
        )
        self._thread.start()

    def _change(self, **changes: Any) -> None:
        with self._changed:
            assert self._record is not None, "a phase has begun"
            self._record = replace(self._record, **changes)

    def _keep(self) -> None:
        while not self._over.wait(self._every_s):
            with suppress(OSError, ArtifactError):  # a full disk stops the job elsewhere, and better said
                self._look()

    def _look(self) -> None:
        record = self._record
        assert record is not None, "begun before the thread"
        self._cancelled = self._cancelled or is_to_stop(self._notes, record)
        if record != self._written or time.time() - record.heard_s > _BEAT_S:
            self._write()

    def _write(self) -> None:
        self._change(heard_s=time.time())
        assert self._record is not None, "a phase has begun"
        self._written = self._record
        write_record(self._notes, self._record)
