"""Running cases on a generator, as a caller does: hand requests in, take tokens as they come."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from typing import Protocol

from actors.messages import Request, Tokens
from actors.sampling_params import SamplingParams
from benchmarks.runtime_cases import Case
from benchmarks.runtime_figures import Arrival, Figures, Pass

WARM_UP_TOKENS = 16
"""Of each text before anything is measured."""


class Generates(Protocol):
    """What of a generator a caller needs."""

    @property
    def has_work(self) -> bool:
        """Whether some text has not ended."""

    def add(self, request: Request) -> None:
        """Hand in a request."""

    def step(self) -> Sequence[Tokens]:
        """Wait for the next step's tokens."""


def measured(generator: Generates, case: Case, vocabulary: int, passes: int) -> list[Figures]:
    """Of every pass, after one that only warms up."""
    short = Case(batch=case.batch, tokens_in=case.tokens_in, tokens_out=min(case.tokens_out, WARM_UP_TOKENS))
    run_pass(generator, short, case.prompts(vocabulary, 0))
    turns = range(1, passes + 1)
    return [run_pass(generator, case, case.prompts(vocabulary, turn)).figures() for turn in turns]


def run_pass(generator: Generates, case: Case, prompts: Sequence[tuple[int, ...]]) -> Pass:
    """All requests at once, until all have ended."""
    params = SamplingParams(max_tokens=case.tokens_out, temperature=0, ignore_eos=True)
    requests = [Request(f"text-{number}", prompt, params) for number, prompt in enumerate(prompts)]
    asked: dict[str, float] = {}
    texts: list[str] = []  # of plain values: what a collector of garbage looks through would cost steps time
    counts: list[int] = []
    times: list[float] = []
    gc.collect()
    for request in requests:
        asked[request.id] = time.perf_counter()
        generator.add(request)
    while generator.has_work:
        told = generator.step()
        at = time.perf_counter()
        for one in told:
            texts.append(one.request)
            counts.append(len(one.tokens))
            times.append(at)
    assert sum(counts) == case.batch * case.tokens_out, f"{sum(counts)} tokens for the case {case}"
    came = zip(times, texts, counts, strict=True)
    arrivals = [Arrival(at_s=at, text=text, tokens=count) for at, text, count in came if count]
    return Pass(case=case, asked_s=asked, arrivals=arrivals)
