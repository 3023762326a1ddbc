"""The whole runtime on the device at hand: scheduler, ranks, sampling, tokens handed to the caller.

    python -m benchmarks.runtime [--shape llama-8b] [--tp 1,2,4] [--json FILE]
    python -m benchmarks.runtime --start
    python -m benchmarks.runtime --context 32768
    python -m benchmarks.runtime --shape tiny --target cpu

A case is as many requests as its batch, all handed in at once: distinct random prompts, greedy, of fixed
length. After a pass that warms up, medians over some passes. Beside them: a peer on record and goals, for the
shape and cases that have them; Transformers' `generate` on the same device; and the least time that the
device's read bandwidth and matrix rate allow, both measured first. With `--folder` engines are kept there and
found again.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.machine import described
from benchmarks.runtime_bench import Bench
from benchmarks.runtime_options import parsed
from benchmarks.runtime_record import Record


def main() -> None:
    """Measure, and print what there is, whatever fails on the way."""
    options = parsed(__doc__ or "")
    record = Record(facts=described("benchmarks.runtime"), on_record=options.on_record)
    try:
        with folder(options.folder) as work:
            Bench(options=options, work=work, record=record).run()
    finally:
        print(record.markdown(), flush=True)
        if options.json:
            options.json.write_text(json.dumps(record.plain(), indent=2) + "\n")
    sys.exit(bool(record.problems))


@contextmanager
def folder(kept: Path | None) -> Iterator[Path]:
    """Where engines are; a temporary one where none is to be kept."""
    if kept is not None:
        yield kept
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


if __name__ == "__main__":
    main()
