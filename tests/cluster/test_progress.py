"""Progress in its three voices."""

from __future__ import annotations

import io
import json

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


def test_too_many_parts_are_one_bar() -> None:
    stream = Terminal()
    reporter = BarReporter(stream)
    reporter.start([100] * (MOST_BARS + 1), "build x", "percent")
    reporter.advance(MOST_BARS, 100)
    reporter.finish()
    assert "unit" not in stream.getvalue()


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
