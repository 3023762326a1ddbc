"""All that a run of `benchmarks/runtime.py` finds, as a page of Markdown and as plain data."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks import runtime_peers as peers
from benchmarks.roofline import Rates
from benchmarks.runtime_cases import Case
from benchmarks.runtime_figures import Figures, medians
from benchmarks.runtime_table import Limits, Row, goals, markdown, milliseconds, table
from builders.mapping import Mapping as Layout


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A case on a layout."""

    layout: Layout
    case: Case
    passes: Sequence[Figures]
    limits: Limits | None

    @property
    def row(self) -> Row:
        who = f"rankforge, {named(self.layout)}" if self.layout.world_size > 1 else "rankforge"
        return Row(case=self.case, who=who, figures=medians(self.passes), limits=self.limits)


@dataclass(frozen=True, kw_only=True)
class Starts:
    """Several starts of a layout."""

    layout: Layout
    phases: Sequence[Mapping[str, float]]
    """Of every start, the seconds of each phase."""

    @property
    def cells(self) -> list[str]:
        totals = [sum(phases.values()) for phases in self.phases]
        medians = [statistics.median(one[name] for one in self.phases) for name in self.phases[0]]
        return [
            named(self.layout),
            *(f"{seconds:.2f} s" for seconds in [*medians, statistics.median(totals)]),
        ]


@dataclass(kw_only=True)
class Record:
    """Grows while things are measured."""

    facts: list[str]
    """What to know of the machine, the software and the engines."""
    on_record: bool
    """Peers and goals are of this shape and kind of device."""
    rates: Rates | None = None
    measured: list[Measured] = field(default_factory=list)
    floor: list[Row] = field(default_factory=list)
    starts: list[Starts] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        """By batch and prompt: ours, what is on record, and the floor."""
        ours = [one.row for one in self.measured]
        alone = [one.row for one in self.measured if one.layout.world_size == 1 and self.on_record]
        rows = [*ours, *(row for one in alone for row in peers_of(one)), *self.floor]
        order = list(dict.fromkeys(_kind(row) for row in rows))
        return sorted(rows, key=lambda row: order.index(_kind(row)))

    def markdown(self) -> str:
        """The page: what there is of it."""
        parts = ["\n".join(f"- {fact}" for fact in [*self.facts, *self._rates()])]
        parts += [table(self.rows)] if self.rows else []
        parts += [text for text in (self._goals(), self._speedups(), self._starts()) if text]
        return "\n\n".join([*parts, *(f"FAILED: {problem}" for problem in self.problems)])

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"rows": [asdict(row) for row in self.rows]}

    def _rates(self) -> list[str]:
        if self.rates is None:
            return []
        read, flops = self.rates.read_bytes_per_s / 1e12, self.rates.flops_per_s / 1e12
        found = [f"Measured in this run: reads {read:.3g} TB/s, multiplies matrices at {flops:.3g} TFLOP/s"]
        return found + ([f"On record: {peers.SOURCE}"] if self.on_record else [])

    def _goals(self) -> str:
        goal_of = {case: known.goal for case, known in peers.CASES.items()}
        alone = [one.row for one in self.measured if one.layout.world_size == 1]
        return goals(alone, goal_of) if self.on_record else ""

    def _speedups(self) -> str:
        """Of tensor parallel layouts at batch 1, against a single rank."""
        steps = [(one.layout, one.row.figures.decode_step_s) for one in self.measured if one.case.batch == 1]
        known = [(layout, step) for layout, step in steps if step is not None and layout.pp_size == 1]
        single = next((step for layout, step in known if layout.world_size == 1), None)
        if single is None or len(known) < 2:
            return ""
        goal = peers.SPEEDUP_GOALS if self.on_record else {}
        return markdown(
            ["layout", "decode step at batch 1", "times as fast", "goal"],
            [
                [named(layout), milliseconds(step), f"{single / step:.2f}", str(goal.get(layout.tp_size, ""))]
                for layout, step in known
            ],
        )

    def _starts(self) -> str:
        if not self.starts:
            return ""
        headings = ["process start to first token", *self.starts[0].phases[0], "together"]
        rows = [one.cells for one in self.starts]
        if self.on_record:
            blanks = [""] * (len(headings) - 2)
            rows += [[peers.PEER, *blanks, f"{peers.START_PEER_S:.0f} s"]]
            rows += [["goal", *blanks, f"{peers.START_GOAL_S:.0f} s"]]
        return markdown(headings, rows)


def named(layout: Layout) -> str:
    """As few words as tell it from others."""
    sizes = {"tp": layout.tp_size, "pp": layout.pp_size, "ep": layout.ep_size}
    return ", ".join(f"{name} {size}" for name, size in sizes.items() if size > 1 or name == "tp")


def peers_of(row: Row) -> list[Row]:
    """What is on record of a row's case."""
    known = peers.CASES.get(row.case)
    if known is None:
        return []
    both = {peers.PEER: known.peer, "goal": known.goal}
    return [Row(case=row.case, who=who, figures=figures, limits=row.limits) for who, figures in both.items()]


def _kind(row: Row) -> tuple[int, int]:
    return row.case.batch, row.case.tokens_in
