"""Progress in its three voices."""

from __future__ import annotations

import io
import json

import pytest

import cluster.progress
from cluster.progress import MOST_BARS, BarReporter, LineReporter, Reporter, reporter_for


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def go(reporter: Reporter) -> None:
    reporter.start([500, 500], "convert x")
    for rank in (0, 1):
        for _ in range(5):
            reporter.advance(rank, 100)
    reporter.finish()


def test_lines_start_and_end() -> None:
    stream = io.StringIO()
    go(LineReporter(stream, as_json=False))
    first, last = stream.getvalue().splitlines()
    assert first.startswith("convert x: 0% of") and last.startswith("convert x: 100% of")


def test_json_lines_add_up() -> None:
    stream = io.StringIO()
    go(LineReporter(stream, as_json=True))
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert lines[0]["ranks"] == 2 and lines[0]["done"] == 0
    assert lines[-1]["done"] == lines[-1]["total"] == 1000 and lines[-1]["left_s"] == 0


def test_a_terminal_gets_bars() -> None:
    stream = Terminal()
    reporter = reporter_for(stream, as_json=False)
    assert isinstance(reporter, BarReporter)
    go(reporter)
    assert "convert x" in stream.getvalue() and "rank 1" in stream.getvalue()


def test_a_pipe_gets_lines() -> None:
    assert isinstance(reporter_for(io.StringIO(), as_json=False), LineReporter)


def test_units_are_counted_in_hundredths() -> None:
    stream = Terminal()
    reporter = BarReporter(stream)
    reporter.start([100, 100], "build x", "percent")
    reporter.advance(1, 100)
    reporter.finish()
    text = stream.getvalue()
    assert "build x" in text and "50%" in text and "unit 1" in text and "100%" in text and "rank" not in text


def test_of_too_many_parts_only_those_in_hand_have_bars() -> None:
    stream = Terminal()
    reporter = BarReporter(stream)
    reporter.start([100] * (MOST_BARS + 1), "build x", "percent")
    for part in (3, MOST_BARS):
        reporter.advance(part, 50)
    reporter.advance(3, 50)
    reporter.done(3)
    stream.truncate(0)
    reporter.finish()
    text = stream.getvalue()
    assert f"unit {MOST_BARS}" in text and "unit 3" not in text and "unit 0" not in text


def test_lines_of_units_say_no_bytes() -> None:
    stream = io.StringIO()
    reporter = LineReporter(stream, as_json=False)
    reporter.start([100], "build x", "percent")
    reporter.advance(0, 100)
    reporter.finish()
    assert stream.getvalue().splitlines() == ["build x: 0%", "build x: 100%, 0 s left"]


def test_what_is_lost_is_said_and_counted_again() -> None:
    stream = io.StringIO()
    reporter = LineReporter(stream, as_json=False)
    reporter.start([500, 500], "convert x")
    for amount in (300, -300, 500):
        reporter.advance(1, amount)
    reporter.lost(1, "rank 1 on node h (pid 7): gone")
    reporter.done(1)
    reporter.advance(0, 500)
    reporter.done(0)
    reporter.finish()
    first, lost, last = stream.getvalue().splitlines()
    assert first.endswith("0 of 2 ranks") and lost == "rank 1 on node h (pid 7): gone"
    assert "100%" in last and "2 of 2 ranks" in last


def test_machines_hear_of_losses_too() -> None:
    stream = io.StringIO()
    reporter = LineReporter(stream, as_json=True)
    reporter.start([100], "build x", "percent")
    reporter.lost(0, "gone")
    assert json.loads(stream.getvalue().splitlines()[1]) == {"label": "build x", "unit": 0, "lost": "gone"}


def test_a_line_says_how_far_each_rank_is(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, now_s = io.StringIO(), iter(range(0, 1000, 3))
    monkeypatch.setattr(cluster.progress.time, "monotonic", lambda: float(next(now_s)))
    reporter = LineReporter(stream, as_json=False)
    reporter.start([500, 500, 1000], "convert x")
    reporter.advance(0, 500)
    reporter.done(0)
    reporter.advance(2, 100)
    reporter.advance(1, 250)
    lines = stream.getvalue().splitlines()
    assert "1 of 3 ranks (rank 1 at 50%, 2 at 10%)" in lines[-1] and lines[-1].endswith("s left")


def test_machines_hear_of_every_rank_that_is_whole_and_how_far_others_are() -> None:
    stream = io.StringIO()
    reporter = LineReporter(stream, as_json=True)
    reporter.start([500, 300], "convert x")
    reporter.advance(0, 200)
    reporter.advance(1, 300)
    reporter.done(1)
    last = json.loads(stream.getvalue().splitlines()[-1])
    assert (last["rank"], last["size"], last["whole"], last["in_hand"]) == (1, 300, 1, {"0": 200})


def test_ranks_have_their_own_numbers() -> None:
    """Where a job goes on, the first that is left need not be the first."""
    stream = io.StringIO()
    reporter = LineReporter(stream, as_json=True)
    reporter.start([500, 300], "convert x", "bytes", [2, 5])
    reporter.advance(0, 200)
    reporter.advance(1, 300)
    reporter.done(1)
    last = json.loads(stream.getvalue().splitlines()[-1])
    assert (last["rank"], last["in_hand"]) == (5, {"2": 200})
    terminal = Terminal()
    bars = BarReporter(terminal)
    bars.start([500, 300], "convert x", "bytes", [2, 5])
    bars.finish()
    assert "rank 5" in terminal.getvalue() and "rank 0" not in terminal.getvalue()
