"""From the start of a process to its first token, phase by phase, told by the process itself.

    python -m benchmarks.runtime_start ENGINE_DIR

All processes of a machine read one clock, so what this one says can be set against when it was started.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

PROMPT_TOKENS = 32
CHUNK_BYTES = 16 * 2**20


def starts(engine: Path, count: int) -> Iterator[Mapping[str, float]]:
    """Seconds of every phase of so many starts, the engine's files in the page cache."""
    read_all(engine)
    for _ in range(count):
        yield one_start(engine)


def read_all(engine: Path) -> None:
    """What was written or read long ago may not be in memory any more."""
    buffer = bytearray(CHUNK_BYTES)
    for file in (file for file in sorted(engine.rglob("*")) if file.is_file()):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def one_start(engine: Path) -> Mapping[str, float]:
    """Raises `subprocess.CalledProcessError` where it fails; what it says of that is on standard error."""
    began = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.runtime_start", str(engine)]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
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
    load = rank_worker.load_engine

    def timed_load(*args: object, **options: object) -> object:
        """Of the rank in this process: what came before, and what follows, are phases by themselves."""
        ends["device"] = time.monotonic()
        engine = load(*args, **options)  # type: ignore[arg-type]
        ends["load"] = time.monotonic()
        return engine

    rank_worker.load_engine = timed_load  # type: ignore[assignment]
    with opened(Path(sys.argv[1])) as generator:
        ends["capture" if "load" in ends else "ranks"] = time.monotonic()
        case = Case(batch=1, tokens_in=min(PROMPT_TOKENS, generator.limits.max_input_len), tokens_out=1)
        run_pass(generator, case, case.prompts(generator.manifest.checkpoint.spec.vocab_size, 0))
        ends["first token"] = time.monotonic()
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
