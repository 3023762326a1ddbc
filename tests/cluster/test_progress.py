"""Progress in its three voices."""

from __future__ import annotations

import io
import json

from cluster.progress import BarReporter, LineReporter, Reporter, reporter_for


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
