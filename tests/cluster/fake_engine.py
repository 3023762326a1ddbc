"""An engine that has every token at once, and says what was asked of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

from actors.engine_stats import EngineStats
from actors.messages import Logprobs, Request, Tokens, Usage
from builders.errors import UserError, WorkerError
from builders.limits import Limits
from cluster.engine_client import Batch, EngineLoad, ModelFacts

FACTS = ModelFacts(
    name="fake",
    limits=Limits(max_batch_size=64, max_input_len=4096, max_seq_len=8192, max_num_tokens=8192),
    vocab_size=400,
    eos=frozenset({1}),
    key="0123456789abcdef",
)


@dataclass
class FakeEngine:
    """Every text is these tokens, over and over, as far as was asked; a batch has one token of every text."""

    tokens: Sequence[int] = (40, 41, 42, 43)
    facts: ModelFacts = FACTS
    stuck_after: int | None = None
    """Tokens, after which nothing more comes."""
    fails_after: int | None = None
    """Tokens, after which the engine fails."""
    ends_after: int | None = None
    """Tokens, after which texts end that can be held to their grammar no longer."""
    refusal: str | None = None
    """Of every request."""
    mistake: Exception | None = None
    """Raised in place of any news."""
    waiting: int = 0
    """What it says of its load."""
    submitted: list[Request] = field(default_factory=list)
    cancelled: list[tuple[str, int | None]] = field(default_factory=list)
    is_closed: bool = False
    counted: EngineStats = EngineStats()  # noqa: RUF009 - it is frozen

    def submit(self, request: Request) -> AsyncIterator[Batch]:
        self.submitted.append(request)
        return self._news(request)

    def cancel(self, request: str, index: int | None = None) -> None:
        self.cancelled.append((request, index))

    def load(self) -> EngineLoad:
        return EngineLoad(waiting=self.waiting)

    def stats(self) -> EngineStats:
        return self.counted

    async def close(self) -> None:
        self.is_closed = True

    async def _news(self, request: Request) -> AsyncIterator[Batch]:
        if self.mistake:
            raise self.mistake
        if self.refusal:
            raise UserError(self.refusal)
        params = request.params
        for place in range(params.max_tokens):
            if place == self.stuck_after:
                await asyncio.Event().wait()
            if place == self.fails_after:
                raise WorkerError("fake: the engine failed: rank 1 died")
            await asyncio.sleep(0)
            if place == self.ends_after:
                yield [Tokens(request.id, 0, (), "stop", failure="json_schema: no token goes on")]
            yield [self._token(request, index, place) for index in range(params.n)]

    def _token(self, request: Request, index: int, place: int) -> Tokens:
        token, params = self.tokens[(place + index) % len(self.tokens)], request.params
        is_last = place == params.max_tokens - 1
        scored = () if params.logprobs is None else (_logprobs(token, index, params.logprobs),)
        news = Tokens(request.id, index, (token,), "length" if is_last else None, logprobs=scored)
        if is_last:
            usage = Usage(len(request.prompt), params.max_tokens, 0)
            news = Tokens(request.id, index, (token,), "length", usage, scored)
        if place == 0 and params.prompt_logprobs is not None:
            of_prompt = tuple(_logprobs(one, 0, params.prompt_logprobs) for one in request.prompt[1:])
            news = Tokens(request.id, index, (token,), news.finish, news.usage, scored, None, of_prompt)
        return news


def _logprobs(token: int, index: int, others: int) -> Logprobs:
    """Later texts are likelier."""
    return Logprobs(index - 9.0, tuple(range(50, 50 + others)), (float("-inf"),) * others)


def named(name: str) -> ModelFacts:
    return replace(FACTS, name=name)
