"""What `benchmarks/runtime.py` measures, part by part: each is a process, so what fails leaves the others."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.alone import FailedAlone, alone
from benchmarks.roofline import Rates, Roofline, measured_rates
from benchmarks.runtime_cases import Case
from benchmarks.runtime_engine import built
from benchmarks.runtime_generate import floor
from benchmarks.runtime_options import Options
from benchmarks.runtime_record import Measured, Record, Starts, named
from benchmarks.runtime_start import starts
from benchmarks.runtime_table import Limits, Row
from builders.checkpoint import Manifest
from builders.engine_manifest import read_engine
from builders.mapping import Mapping as Layout

ValueT = TypeVar("ValueT")


@dataclass(kw_only=True)
class Bench:
    """Measures into a record."""

    options: Options
    work: Path
    """Where engines are."""
    record: Record
    single: Manifest | None = None
    """Of the engine of one rank."""

    def __post_init__(self) -> None:
        self._deadline = time.monotonic() + self.options.seconds

    def run(self) -> None:
        """The device first, then every layout, then the floor."""
        if not self.options.starts:
            with self._noted("the device's rates"):
                dtype = getattr(torch, self.options.shape.dtype)
                (self.record.rates,) = self._alone(rates, self.options.target, dtype)
        for layout in self.options.layouts:
            with self._noted(named(layout)):
                self._layout(layout)
        if self.single is not None and not self.options.starts:
            with self._noted("Transformers' generate"):
                self._floor(self.single)

    def _layout(self, layout: Layout) -> None:
        """Built once, for all cases or starts."""
        options = self.options
        layers = f"-{options.layers}-layers" if options.layers else ""
        words = f"{options.shape_name}{layers}-{options.target}-{named(layout)}"
        place = self.work / words.replace(", ", "-").replace(" ", "")
        (engine,) = self._alone(built, options.shape, layout, options.limits, options.target, place)
        self.record.facts.append(f"Engine, {named(layout)}: {engine}")
        if options.starts:
            phases = list(starts(engine.folder, options.starts, self._deadline))
            self.record.starts.append(Starts(layout=layout, phases=phases))
            return
        manifest = read_engine(engine.folder).checkpoint
        self.single = manifest if layout.world_size == 1 else self.single
        self._cases(layout, manifest, engine.folder)

    def _cases(self, layout: Layout, manifest: Manifest, engine: Path) -> None:
        from benchmarks.runtime_open import run_cases

        for case, passes in self._alone(run_cases, engine, self.options.cases, self.options.passes):
            limits = self._limits(manifest, case)
            self.record.measured.append(Measured(layout=layout, case=case, passes=passes, limits=limits))
            self._tell(self.record.measured[-1].row)

    def _floor(self, manifest: Manifest) -> None:
        whole = {(case.batch, case.tokens_in): case for case in self.options.cases}
        for case, figures in self._alone(floor, self.options.shape, self.options.floor, self.options.target):
            if case != whole[case.batch, case.tokens_in]:
                figures = replace(figures, output_tokens_per_s=None)  # fewer tokens bear the prompts
            limits = self._limits(manifest, case)
            self.record.floor.append(
                Row(case=case, who="Transformers generate", figures=figures, limits=limits)
            )
            self._tell(self.record.floor[-1])

    def _alone(self, work: Callable[..., Iterable[ValueT]], *args: Any) -> Iterator[ValueT]:
        """In a process of its own, while there is time."""
        return alone(work, *args, deadline=self._deadline)

    def _limits(self, manifest: Manifest, case: Case) -> Limits | None:
        if self.record.rates is None:
            return None
        roofline = Roofline(manifest=manifest, rates=self.record.rates)
        steps = -(-case.batch * case.tokens_in // self.options.limits.max_num_tokens)
        return Limits(
            decode_s=roofline.decode_s(case.batch, case.context),
            prefill_s=roofline.prefill_s(case.batch, case.tokens_in, steps),
        )

    @contextmanager
    def _noted(self, what: str) -> Iterator[None]:
        """A part that fails is noted."""
        try:
            yield
        except (FailedAlone, subprocess.SubprocessError) as error:
            self.record.problems.append(f"{what}: {error}")

    def _tell(self, row: Row) -> None:
        """Before the table is there."""
        print(" | ".join(row.cells), file=sys.stderr, flush=True)


def rates(device: str, dtype: torch.dtype) -> Iterator[Rates]:
    """As a process of its own yields them: none of the device's memory stays taken."""
    yield measured_rates(device, dtype)
