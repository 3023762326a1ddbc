"""From the start of a process to its first token, phase by phase, told by the process itself.

    python -m benchmarks.runtime_start ENGINE_DIR

All processes of a machine read one clock, so what this one says can be set against when it was started.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from builders.engine import Engine

PROMPT_TOKENS = 32
CHUNK_BYTES = 16 * 2**20
LOAD = "load_engine"
"""As a rank worker calls it."""


def starts(engine: Path, count: int, deadline: float) -> Iterator[Mapping[str, float]]:
    """Seconds of every phase of so many starts, the engine's files in the page cache.

    Raises `subprocess.SubprocessError` where one fails, or does not end by a time of `time.monotonic`.
    """
    read_all(engine)
    for _ in range(count):
        yield one_start(engine, deadline)


def read_all(engine: Path) -> None:
    """What was written or read long ago may not be in memory any more."""
    buffer = bytearray(CHUNK_BYTES)
    for file in (file for file in sorted(engine.rglob("*")) if file.is_file()):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def one_start(engine: Path, deadline: float) -> Mapping[str, float]:
    """What a failure says of itself is on standard error."""
    began = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.runtime_start", str(engine)]
    timeout = max(0.0, deadline - began)
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=timeout).stdout
    ends: Mapping[str, float] = json.loads(told.splitlines()[-1])
    spans = pairwise([began, *ends.values()])
    return {name: end - start for name, (start, end) in zip(ends, spans, strict=True)}


def main() -> None:
    """Open a generator, take a token, and say when each phase ended."""
    ends = {"Python": time.monotonic()}
    from actors import rank_worker
    from benchmarks.runtime_cases import Case
    from benchmarks.runtime_open import opened
    from benchmarks.runtime_passes import run_pass

    ends["imports"] = time.monotonic()
    setattr(rank_worker, LOAD, _noted(getattr(rank_worker, LOAD), ends))
    with opened(Path(sys.argv[1])) as generator:
        ends["capture" if "load" in ends else "ranks"] = time.monotonic()
        case = Case(batch=1, tokens_in=min(PROMPT_TOKENS, generator.limits.max_input_len), tokens_out=1)
        run_pass(generator, case, case.prompts(generator.manifest.checkpoint.spec.vocab_size, 0))
        ends["first token"] = time.monotonic()
    print(json.dumps(ends))


def _noted(load: Callable[..., Engine], ends: dict[str, float]) -> Callable[..., Engine]:
    """Loading the rank of this process, where it has one: what comes before and after are other phases."""

    def run(*args: Any, **options: Any) -> Engine:
        ends["device"] = time.monotonic()
        engine = load(*args, **options)
        ends["load"] = time.monotonic()
        return engine

    return run


if __name__ == "__main__":
    main()
