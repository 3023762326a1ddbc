"""Progress for people at a terminal, for logs, and for machines: one interface, three voices."""

from __future__ import annotations

import json
import sys
import time
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class Reporter(Protocol):
    """Hears how far a job is."""

    def start(self, *, total_bytes: int, ranks: int, label: str) -> None:
        """A job begins."""

    def advance(self, rank: int, num_bytes: int) -> None:
        """A rank wrote this much more."""

    def finish(self) -> None:
        """The job is over, well or not."""


def reporter_for(stream: TextIO, *, as_json: bool) -> Reporter:
    """Bars on a terminal, plain lines elsewhere, JSON lines where asked."""
    if as_json:
        return LineReporter(stream, as_json=True)
    return BarReporter(stream) if stream.isatty() else LineReporter(stream, as_json=False)


class BarReporter:
    """A bar for the whole and one for every rank."""

    def __init__(self, stream: TextIO) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=Console(file=stream))
        self._ranks: dict[int, TaskID] = {}

    def start(self, *, total_bytes: int, ranks: int, label: str) -> None:
        self._total = self._progress.add_task(label, total=total_bytes)
        if ranks > 1:
            share = total_bytes / ranks
            self._ranks = {
                rank: self._progress.add_task(f"  rank {rank}", total=share) for rank in range(ranks)
            }
        self._progress.start()

    def advance(self, rank: int, num_bytes: int) -> None:
        self._progress.advance(self._total, num_bytes)
        if rank in self._ranks:
            self._progress.advance(self._ranks[rank], num_bytes)

    def finish(self) -> None:
        self._progress.stop()


class LineReporter:
    """A line at the start, at every tenth of the way, and at most every two seconds."""

    def __init__(self, stream: TextIO, *, as_json: bool) -> None:
        self._stream, self._as_json = stream, as_json
        self._label, self._total, self._done, self._said_at = "", 1, 0, 0.0

    def start(self, *, total_bytes: int, ranks: int, label: str) -> None:
        self._label, self._total, self._done = label, max(1, total_bytes), 0
        self._began = self._said_at = time.monotonic()
        self._say(ranks=ranks)

    def advance(self, rank: int, num_bytes: int) -> None:
        tenth = self._done * 10 // self._total
        self._done += num_bytes
        now = time.monotonic()
        done = self._done >= self._total
        if done or (self._done * 10 // self._total > tenth and now - self._said_at > 2):
            self._said_at = now
            self._say(rank=rank)

    def finish(self) -> None:
        self._stream.flush()

    def _say(self, **facts: int) -> None:
        speed = self._done / max(time.monotonic() - self._began, 1e-9)
        left_s = (self._total - self._done) / speed if self._done else None
        if self._as_json:
            news = {"label": self._label, "bytes": self._done, "total_bytes": self._total, "left_s": left_s}
            print(json.dumps({**news, **facts}), file=self._stream, flush=True)
            return
        left = "" if left_s is None else f", {speed / 1e6:.0f} MB/s, {left_s:.0f} s left"
        share = 100 * self._done // self._total
        print(f"{self._label}: {share}% of {self._total / 1e6:.1f} MB{left}", file=self._stream, flush=True)


def stderr_reporter(*, as_json: bool) -> Reporter:
    """Progress never mixes with results, which go to standard output."""
    return reporter_for(sys.stderr, as_json=as_json)
