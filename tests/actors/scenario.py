"""Many requests in one run: they join, meet, are sent back, cancelled, and get what Transformers says."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from transformers import PreTrainedModel

from actors.generator import Generator
from actors.messages import Order, StepPlan, StepResult, Tokens
from actors.ranks import Ranks
from builders.limits import Limits
from tests.actors.wishes import LAST, Wish, ends_of

LIMITS = Limits(
    max_batch_size=2,
    max_beam_width=3,
    max_input_len=32,
    max_seq_len=48,
    max_num_tokens=10,
    tokens_per_block=4,
)
"""Six texts at once, prompts in several pieces."""

NUM_BLOCKS = 18
"""Less than half of what six texts may take."""


@dataclass
class Watched:
    """Ranks, and what they are told."""

    ranks: Ranks
    plans: list[StepPlan] = field(default_factory=list)

    def submit(self, order: Order) -> None:
        self.plans.append(order.plan)
        self.ranks.submit(order)

    def collect(self) -> StepResult:
        return self.ranks.collect()

    def close(self) -> None:
        self.ranks.close()


@dataclass
class Scenario:
    """A run of all wishes."""

    generator: Generator
    wishes: Sequence[Wish]
    plans: list[StepPlan] = field(default_factory=list)
    news: defaultdict[tuple[str, int], list[Tokens]] = field(default_factory=lambda: defaultdict(list))

    def run(self) -> None:
        self.generator._ranks = watched = Watched(self.generator._ranks)
        self.plans = watched.plans
        for step in range(max(wish.joins for wish in self.wishes if wish.joins < LAST) + 1):
            self._join(step)
            self._step()
        self._finish()
        for wish in self.wishes:
            if wish.joins == LAST:
                self.generator.add(wish.request)
                self._finish()

    def _finish(self) -> None:
        while self.generator.has_work:
            self._step()
        self.generator.check_integrity()

    def _join(self, step: int) -> None:
        for wish in self.wishes:
            if wish.joins == step:
                self.generator.add(wish.request)

    def _step(self) -> None:
        for one in self.generator.step():
            news = self.news[one.request, one.index]
            assert not news or news[-1].finish is None, "nothing comes after the end"
            news.append(one)
        for wish in self.wishes:
            self._leave(wish)

    def _leave(self, wish: Wish) -> None:
        if wish.leaves:
            index, tokens = wish.leaves
            if len(self.text(wish, index or 0)) >= tokens:
                self.generator.cancel(wish.request.id, index)

    def text(self, wish: Wish, index: int) -> tuple[int, ...]:
        return tuple(token for one in self.news[wish.request.id, index] for token in one.tokens)

    def check(self, model: PreTrainedModel) -> None:
        """Everyone has got what is due."""
        for wish in self.wishes:
            for index in range(wish.request.params.n):
                if wish.leaves and wish.leaves[0] in (None, index):
                    self._check_cancelled(wish, index)
                else:
                    self._check_text(wish, index)
                    self._check_logprobs(wish, index, model)

    def _check_cancelled(self, wish: Wish, index: int) -> None:
        assert wish.leaves
        text = self.text(wish, index)
        assert len(text) >= wish.leaves[1] and text == wish.texts[index][: len(text)]
        assert all(one.finish is None for one in self.news[wish.request.id, index])

    def _check_text(self, wish: Wish, index: int) -> None:
        request, text = wish.request, wish.texts[index]
        assert self.text(wish, index) == text, (request.id, index)
        last = self.news[request.id, index][-1]
        assert last.finish == ("stop" if text[-1] in ends_of(request.params) else "length"), request.id
        assert last.usage and last.usage.prompt_tokens == len(request.prompt)
        assert last.usage.output_tokens == len(text)
        if wish.scores:
            assert last.score == pytest.approx(wish.scores[index], abs=1e-4)

    @torch.no_grad()
    def _check_logprobs(self, wish: Wish, index: int, model: PreTrainedModel) -> None:
        params, text = wish.request.params, self.text(wish, index)
        told = [one for news in self.news[wish.request.id, index] for one in news.logprobs]
        if params.logprobs is None:
            assert not told
            return
        logits = model(torch.tensor([[*wish.request.prompt, *text]])).logits[0]
        theirs = logits[len(wish.request.prompt) - 1 : -1].float().log_softmax(-1)
        assert len(told) == len(text)
        for row, token, one in zip(theirs, text, told, strict=True):
            best = row.topk(params.logprobs)
            assert one.sampled == pytest.approx(row[token].item(), abs=1e-4)
            assert list(one.tokens) == best.indices.tolist()
            assert one.values == pytest.approx(best.values.tolist(), abs=1e-4)

    def check_variety(self) -> None:
        """What was to happen has happened."""
        admitted = Counter((one.request, one.index) for plan in self.plans for one in plan.admitted)
        assert max(admitted.values()) > 1, "somebody was sent back"
        chunks = [chunk for plan in self.plans for chunk in plan.chunks]
        assert any(chunk.start and not chunk.sampled for chunk in chunks), "prompts come in pieces"
        assert any(plan.decode and plan.chunks for plan in self.plans), "others decode meanwhile"
        assert any(plan.copies for plan in self.plans), "texts begin in a common block"
        for name in ("alike", "again"):
            usage = self.news[name, 0][-1].usage
            assert usage and usage.cached_tokens > 0, f"{name}: its prompt was in the cache"
