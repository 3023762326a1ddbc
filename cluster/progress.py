"""Progress for people at a terminal, for logs, and for machines: one interface, three voices."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

Unit = Literal["bytes", "percent"]
"""What a job's size is counted in: bytes of ranks, or hundredths of each of its units."""

PARTS: Mapping[Unit, str] = {"bytes": "rank", "percent": "unit"}
"""What is counted so."""

MOST_BARS = 16
"""Of parts: more would not fit on a screen, so of more only those that are in hand have one."""

MOST_SHARES = 8
"""Of parts in hand, in one line."""


class Reporter(Protocol):
    """Hears how far a job is."""

    def start(
        self, sizes: Sequence[int], label: str, unit: Unit = "bytes", numbers: Sequence[int] = ()
    ) -> None:
        """A job begins; one size for each of its parts: ranks, or units.

        `numbers` are what they are called, as some may be done already; by default they are counted from 0.
        """

    def advance(self, part: int, amount: int) -> None:
        """A part is this much further."""

    def done(self, part: int) -> None:
        """A part is whole."""

    def lost(self, part: int, what: str) -> None:
        """An attempt at a part was lost."""

    def finish(self) -> None:
        """The job is over, well or not."""


def reporter_for(stream: TextIO, *, as_json: bool) -> Reporter:
    """Bars on a terminal, plain lines elsewhere, JSON lines where asked."""
    if as_json:
        return LineReporter(stream, as_json=True)
    return BarReporter(stream) if stream.isatty() else LineReporter(stream, as_json=False)


_COLUMNS: Mapping[Unit, Sequence[ProgressColumn]] = {
    "bytes": (DownloadColumn(binary_units=True), TransferSpeedColumn()),
    "percent": (TaskProgressColumn(),),
}


class BarReporter:
    """A bar for the whole, and one for every part."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream)
        self._parts: dict[int, TaskID] = {}

    def start(
        self, sizes: Sequence[int], label: str, unit: Unit = "bytes", numbers: Sequence[int] = ()
    ) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), *_COLUMNS[unit], TimeRemainingColumn())
        self._progress = Progress(*columns, console=self._console)
        self._total = self._progress.add_task(label, total=sum(sizes))
        self._sizes, self._unit, self._parts = sizes, unit, {}
        self._numbers = numbers or range(len(sizes))
        for part in range(len(sizes) if 1 < len(sizes) <= MOST_BARS else 0):
            self._add(part)
        self._progress.start()

    def advance(self, part: int, amount: int) -> None:
        self._progress.advance(self._total, amount)
        if part not in self._parts and len(self._sizes) > 1 and len(self._parts) < MOST_BARS:
            self._add(part)
        if part in self._parts:
            self._progress.advance(self._parts[part], amount)

    def done(self, part: int) -> None:
        if len(self._sizes) > MOST_BARS and part in self._parts:
            self._progress.remove_task(self._parts.pop(part))

    def _add(self, part: int) -> None:
        name = f"  {PARTS[self._unit]} {self._numbers[part]}"
        self._parts[part] = self._progress.add_task(name, total=self._sizes[part])

    def lost(self, part: int, what: str) -> None:
        self._progress.console.print(what, highlight=False, markup=False)

    def finish(self) -> None:
        self._progress.stop()


class LineReporter:
    """A line at the start, one for every part that is whole, and one for every tenth of the way.

    Where there is much to say, that is said every two seconds; machines hear of every part.
    """

    def __init__(self, stream: TextIO, *, as_json: bool) -> None:
        self._stream, self._as_json = stream, as_json
        self._said_at = 0.0

    def start(
        self, sizes: Sequence[int], label: str, unit: Unit = "bytes", numbers: Sequence[int] = ()
    ) -> None:
        self._label, self._unit, self._total, self._done = label, unit, max(1, sum(sizes)), 0
        self._sizes, self._whole, self._numbers = sizes, 0, numbers or range(len(sizes))
        self._each: dict[int, int] = {}
        self._began = self._said_at = time.monotonic()
        self._say(**{f"{PARTS[unit]}s": len(sizes)})

    def advance(self, part: int, amount: int) -> None:
        tenth = self._done * 10 // self._total
        self._done += amount
        self._each[part] = self._each.get(part, 0) + amount
        if tenth < self._done * 10 // self._total < 10 and self._is_time:
            self._say()

    def done(self, part: int) -> None:
        self._whole += 1
        if self._as_json or (1 < len(self._sizes) <= MOST_BARS and self._is_time):
            self._say(**{PARTS[self._unit]: self._numbers[part], "size": self._sizes[part]})

    @property
    def _is_time(self) -> bool:
        return time.monotonic() - self._said_at > 2

    def lost(self, part: int, what: str) -> None:
        line = json.dumps({"label": self._label, PARTS[self._unit]: self._numbers[part], "lost": what})
        print(line if self._as_json else what, file=self._stream, flush=True)

    def finish(self) -> None:
        """The last line comes when every part has said that it is done."""
        if self._done >= self._total:
            self._say()
        self._stream.flush()

    def _say(self, **facts: int) -> None:
        self._said_at = time.monotonic()
        speed = self._done / max(time.monotonic() - self._began, 1e-9)
        left_s = (self._total - self._done) / speed if self._done else None
        if self._as_json:
            news = {"label": self._label, "done": self._done, "total": self._total, "unit": self._unit}
            whole = {"whole": self._whole, "parts": len(self._sizes), "in_hand": self._in_hand()}
            pace = {"per_s": round(speed, 1), "left_s": left_s}
            print(json.dumps({**news, **whole, **pace, **facts}), file=self._stream, flush=True)
            return
        left = "" if left_s is None else f", {self._speed(speed)}{left_s:.0f} s left"
        share = 100 * self._done // self._total
        many = len(self._sizes)
        parts = f", {self._whole} of {many} {PARTS[self._unit]}s" if many > 1 else ""
        print(
            f"{self._label}: {share}%{self._size()}{parts}{self._shares()}{left}",
            file=self._stream,
            flush=True,
        )

    def _in_hand(self) -> dict[int, int]:
        """How far those parts are that are neither whole nor untouched, by their numbers."""
        return {self._numbers[part]: done for part, done in self._begun()}

    def _begun(self) -> list[tuple[int, int]]:
        return [(part, done) for part, done in sorted(self._each.items()) if 0 < done < self._sizes[part]]

    def _shares(self) -> str:
        found = [
            f"{self._numbers[part]} at {100 * done // self._sizes[part]}%" for part, done in self._begun()
        ]
        if not found or len(self._sizes) == 1:
            return ""
        more = f" and {len(found) - MOST_SHARES} more" if len(found) > MOST_SHARES else ""
        return f" ({PARTS[self._unit]} {', '.join(found[:MOST_SHARES])}{more})"

    def _size(self) -> str:
        return f" of {self._total / 1e6:.1f} MB" if self._unit == "bytes" else ""

    def _speed(self, speed: float) -> str:
        return f"{speed / 1e6:.0f} MB/s, " if self._unit == "bytes" else ""


def stderr_reporter(*, as_json: bool) -> Reporter:
    """Progress never mixes with results, which go to standard output."""
    return reporter_for(sys.stderr, as_json=as_json)
