"""Requests in, news of their texts out: plans the next step while the last one runs."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from types import TracebackType

from msgspec.structs import replace

from actors.engine_stats import EngineStats
from actors.messages import Order, Request, StepPlan, StepResult, Tokens, packed, slots_of
from actors.meter import Meter
from actors.ranks import Ranks
from actors.sampler import check_tokens
from actors.sampling_params import with_seed
from actors.scheduler import Scheduler
from builders.engine_manifest import EngineManifest
from builders.limits import Limits


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How far plans are ahead of results."""

    steps: int
    """That are under way at once."""
    fed: bool
    """Ranks have to be told what was sampled: with several stages, the first does not see it."""


class Generator:
    """One thread uses it."""

    def __init__(
        self, ranks: Ranks, scheduler: Scheduler, pace: Pace, manifest: EngineManifest, eos: frozenset[int]
    ) -> None:
        self._ranks, self._scheduler, self._pace = ranks, scheduler, pace
        self.manifest, self.eos = manifest, eos
        self._plans: deque[StepPlan] = deque()
        self._last = LastTokens()
        self._meter = Meter()

    @property
    def limits(self) -> Limits:
        return self.manifest.limits

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def add(self, request: Request) -> None:
        """Queue a request, or refuse what can never be done."""
        known = [token for text in request.begun.texts for token in text or ()] if request.begun else ()
        vocab_size = self.manifest.checkpoint.spec.vocab_size
        check_tokens(request.params, (*request.prompt, *known), vocab_size)
        self._scheduler.add(_seeded(request))
        self._meter.arrive(request.id)

    def cancel(self, request: str, index: int | None = None) -> None:
        """End a request's texts, or one of them, without further news; if they ended already, do nothing."""
        self._scheduler.cancel(request, index)
        if index is None:
            self._meter.leave(request)

    def remaining(self) -> list[Request]:
        """What is to be done still: another generator gives what this one would have, if this one fails."""
        return self._scheduler.remaining()

    def check(self) -> None:
        """Raise what has gone wrong with the ranks, if anything has: also where there is no work."""
        self._ranks.check()

    def step(self) -> list[Tokens]:
        """Wait for the oldest step under way; the news that it brings."""
        while len(self._plans) < self._pace.steps and (plan := self._scheduler.schedule()):
            self._plans.append(plan)
            self._meter.begin(plan)
            self._ranks.submit(Order(plan, self._last.of(plan) if self._pace.fed else b""))
        if not self._plans:
            assert not self._scheduler.has_work, "whoever waits for nothing is planned"
            return []
        result = self._ranks.collect()
        plan = self._plans.popleft()
        if self._pace.fed:
            self._last.take(plan, result)
        news = self._scheduler.update(result)
        self._meter.end(plan, is_last=not self._scheduler.has_work)
        return news

    def stats(self) -> EngineStats:
        """What it has done so far; may be asked for by any thread."""
        return self._meter.stats(self._scheduler)

    def check_integrity(self) -> None:
        """Nothing is lost, nothing held that should not be: see `Scheduler.check_integrity`."""
        self._scheduler.check_integrity()

    def close(self) -> None:
        self._ranks.close()

    def __enter__(self) -> Generator:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


def _seeded(request: Request) -> Request:
    """With a seed: ranks that choose together must draw alike."""
    return replace(request, params=with_seed(request.params))


@dataclass
class LastTokens:
    """What every slot sampled last, as far as results have come."""

    _tokens: dict[int, int] = field(default_factory=dict)

    def of(self, plan: StepPlan) -> bytes:
        """Of the slots that decode."""
        return packed([self._tokens[slot] for slot in slots_of(plan.decode)])

    def take(self, plan: StepPlan, result: StepResult) -> None:
        """By the rows of a step."""
        slots = slots_of(plan.decode)
        slots += [run.slot for run in plan.runs for _ in run.tokens]
        slots += [slot for chunk in plan.chunks for slot in chunk.sampled]
        self._tokens.update(zip(slots, result.tokens, strict=True))
