"""The table of `benchmarks/runtime.py` in Markdown: a row for everybody who is known to have done a case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from benchmarks.runtime_cases import Case
from benchmarks.runtime_figures import Figures

HEADINGS: Mapping[str, str] = {
    "first_token_s": "first token, median",
    "last_first_token_s": "first token, last",
    "decode_step_s": "decode step",
    "decode_tokens_per_s": "decode tok/s",
    "output_tokens_per_s": "output tok/s",
    "prefill_tokens_per_s": "prefill tok/s",
}
SHARES = ("decode, of roofline", "prefill, of roofline")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The least times of a case on the device."""

    decode_s: float
    prefill_s: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """What somebody does in a case."""

    case: Case
    who: str
    figures: Figures
    limits: Limits | None = None

    @property
    def shares(self) -> tuple[float | None, float | None]:
        """Of the roofline: of a decoding step, and of all prompts."""
        case, found, limits = self.case, self.figures, self.limits
        if limits is None:
            return None, None
        step = found.decode_step_s
        if step is None and found.decode_tokens_per_s:
            step = case.batch / found.decode_tokens_per_s
        prefill = found.prefill_tokens_per_s
        return (
            limits.decode_s / step if step else None,
            limits.prefill_s * prefill / (case.batch * case.tokens_in) if prefill else None,
        )

    @property
    def cells(self) -> list[str]:
        known = [_shown(name, getattr(self.figures, name)) for name in HEADINGS]
        return [str(self.case), self.who, *known, *map(_percent, self.shares)]


def table(rows: Iterable[Row]) -> str:
    """All of them."""
    return markdown(["batch, in, out", "who", *HEADINGS.values(), *SHARES], [row.cells for row in rows])


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def reached(found: Figures, goal: Figures) -> dict[str, bool]:
    """For every figure that has a goal, whether it is as good."""
    names = [field.name for field in fields(Figures)]
    known = [(name, getattr(found, name), getattr(goal, name)) for name in names]
    return {
        name: value >= wanted if _is_rate(name) else value <= wanted
        for name, value, wanted in known
        if value is not None and wanted is not None
    }


def goals(rows: Iterable[Row], goal_of: Mapping[Case, Figures]) -> str:
    """One line for every goal."""
    return "\n".join(
        f"- {row.case}: {HEADINGS[name]} {_shown(name, getattr(row.figures, name))}, "
        f"goal {_shown(name, getattr(goal_of[row.case], name))}: {'reached' if good else 'missed'}"
        for row in rows
        if row.case in goal_of
        for name, good in reached(row.figures, goal_of[row.case]).items()
    )


def _is_rate(name: str) -> bool:
    return name.endswith("_per_s")


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if _is_rate(name) else milliseconds(value)


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms" if seconds < 0.1 else f"{1e3 * seconds:,.0f} ms"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"
