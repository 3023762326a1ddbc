"""The figures of one case: those of a peer on record, of a goal, or found here from when tokens came."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

from benchmarks.runtime_cases import Case


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What is known of a case; None is not known."""

    first_token_s: float | None = None
    """From a request's arrival to its first token, the median over requests."""
    last_first_token_s: float | None = None
    """The same of the request that waited longest."""
    decode_step_s: float | None = None
    """From a text's token to its next, the median over all while every text decodes."""
    decode_tokens_per_s: float | None = None
    """Of all texts together, while every text decodes."""
    output_tokens_per_s: float | None = None
    """Of all texts together, from the first arrival to the last token."""
    prefill_tokens_per_s: float | None = None
    """Of all prompts together, from the first arrival until every text has a token."""


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """Tokens of one text, as the caller got them."""

    at_s: float
    text: str
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One run of a case: when each request was handed in, and when its tokens came, in order."""

    case: Case
    asked_s: Mapping[str, float]
    arrivals: Sequence[Arrival]

    def figures(self) -> Figures:
        """All of them that the case has: a text of one token has no next."""
        began, ended = min(self.asked_s.values()), self.arrivals[-1].at_s
        firsts = {text: times[0] for text, times in self._times().items()}
        waits = [firsts[text] - asked for text, asked in self.asked_s.items()]
        gaps, rate = self._decoding(max(firsts.values()))
        return Figures(
            first_token_s=statistics.median(waits),
            last_first_token_s=max(waits),
            decode_step_s=statistics.median(gaps) if gaps else None,
            decode_tokens_per_s=rate,
            output_tokens_per_s=sum(one.tokens for one in self.arrivals) / (ended - began),
            prefill_tokens_per_s=self.case.batch * self.case.tokens_in / (max(firsts.values()) - began),
        )

    def _times(self) -> dict[str, list[float]]:
        """When every text's tokens came."""
        times: dict[str, list[float]] = {text: [] for text in self.asked_s}
        for one in self.arrivals:
            times[one.text].append(one.at_s)
        return times

    def _decoding(self, since: float) -> tuple[list[float], float | None]:
        """Gaps of texts, and tokens a second, between the last first token and the first last one."""
        until = min(times[-1] for times in self._times().values())
        inside = {text: [at for at in times if since <= at <= until] for text, times in self._times().items()}
        gaps = [after - before for times in inside.values() for before, after in pairwise(times)]
        tokens = sum(one.tokens for one in self.arrivals if since < one.at_s <= until)
        return gaps, tokens / (until - since) if until > since else None


def medians(figures: Iterable[Figures]) -> Figures:
    """Of each figure, over several passes."""
    every = list(figures)
    names = [field.name for field in fields(Figures)]
    return Figures(**{name: _median([getattr(one, name) for one in every]) for name in names})


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
