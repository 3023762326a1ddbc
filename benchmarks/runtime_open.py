"""Opening the generator that is measured, and running cases on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from actors.generator import Generator
from actors.open_generator import GeneratorOptions, open_generator
from benchmarks.runtime_cases import Case
from benchmarks.runtime_figures import Figures
from benchmarks.runtime_passes import measured
from builders.engine_manifest import read_engine


def opened(engine: Path) -> Generator:
    """With all the cache that there is room for; several ranks on a Ray of their own, whatever else runs."""
    several = read_engine(engine).checkpoint.mapping.world_size > 1
    return open_generator(engine, GeneratorOptions(address="local" if several else None))


def run_cases(engine: Path, cases: Sequence[Case], passes: int) -> Iterator[tuple[Case, list[Figures]]]:
    """Every case when it is done, with its passes."""
    with opened(engine) as generator:
        vocabulary = generator.manifest.checkpoint.spec.vocab_size
        for case in cases:
            yield case, measured(generator, case, vocabulary, passes)
