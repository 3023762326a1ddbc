"""A scheduler with fake ranks, stepped by hand."""

from __future__ import annotations

from typing import Any

from actors.messages import Request, StepPlan, Tokens
from actors.sampling_params import SamplingParams
from actors.scheduler import Scheduler
from builders.limits import Limits
from tests.actors.fake_ranks import EOS, FakeRanks

BLOCK = 4


def limits_of(**changes: int) -> Limits:
    """For four texts at once."""
    values = {"max_batch_size": 1, "max_input_len": 64, "max_seq_len": 96, "max_num_tokens": 32}
    return Limits(**{**values, "max_beam_width": 4, "tokens_per_block": BLOCK, **changes})


def a_request(name: str, prompt: range | list[int], **params: Any) -> Request:
    given = {"temperature": 0, "max_tokens": 8, "ignore_eos": True, **params}
    return Request(name, tuple(prompt), SamplingParams(**given))


class Service:
    """A scheduler and ranks; every step's plan and news are kept."""

    def __init__(self, limits: Limits, num_blocks: int = 64, **options: Any) -> None:
        self.scheduler = Scheduler(limits, num_blocks, eos=[EOS], **options)
        self.ranks = FakeRanks(num_blocks, BLOCK)
        self.plans: list[StepPlan] = []
        self.news: list[Tokens] = []

    def plan(self) -> StepPlan:
        plan = self.scheduler.schedule()
        assert plan is not None, "there is work"
        self.plans.append(plan)
        return plan

    def step(self) -> StepPlan:
        plan = self.plan()
        self.news += self.scheduler.update(self.ranks.execute(plan))
        self.scheduler.check_integrity()
        return plan

    def finish(self) -> None:
        while self.scheduler.has_work:
            self.step()

    def text(self, request: str, index: int = 0) -> tuple[int, ...]:
        return tuple(
            t for one in self.news if (one.request, one.index) == (request, index) for t in one.tokens
        )
