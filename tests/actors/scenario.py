"""Many requests in one run: they join, meet, are sent back, cancelled, and get what Transformers says."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from actors.generator import Generator
from actors.messages import Logprobs, Order, StepPlan, StepResult, Tokens
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

    def check(self) -> None:
        self.ranks.check()

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
                    self._check_told(wish, index, model)

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
    def _check_told(self, wish: Wish, index: int, model: PreTrainedModel) -> None:
        """How likely its tokens were, and all logits, where it asked for them."""
        params, prompt, text = wish.request.params, wish.request.prompt, self.text(wish, index)
        logits = model(torch.tensor([[*prompt, *text]])).logits[0, :-1].float()
        rows, news, first = logits.log_softmax(-1), self.news[wish.request.id, index], len(prompt) - 1
        of_prompt, of_text = (
            [one for each in news for one in getattr(each, name)] for name in ("prompt_logprobs", "logprobs")
        )
        same_logprobs(of_prompt, rows[:first], prompt[1:], params.prompt_logprobs)
        same_logprobs(of_text, rows[first:], text, params.logprobs)
        whole = [torch.tensor(array("f", row)) for one in news for row in one.logits]
        assert len(whole) == (len(text) if params.logits else 0)
        for ours, theirs in zip(whole, logits[first:], strict=False):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)

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


def same_logprobs(told: Sequence[Logprobs], rows: Tensor, tokens: Sequence[int], number: int | None) -> None:
    """Of these tokens, and of so many of the likeliest in these rows."""
    assert len(told) == (len(tokens) if number is not None else 0)
    for one, row, token in zip(told, rows, tokens, strict=False):
        best = row.topk(number or 0)
        assert one.sampled == pytest.approx(row[token].item(), abs=1e-4)
        assert list(one.tokens) == best.indices.tolist()
        assert one.values == pytest.approx(best.values.tolist(), abs=1e-4)
