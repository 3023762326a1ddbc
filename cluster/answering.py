"""The prompts of one request at an engine, and their texts as they grow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType

from actors.messages import Request, Tokens
from actors.sampling_params import SamplingParams
from builders.errors import BusyError, UserError, WorkerError
from cluster.api_answers import PromptDetails, Usage
from cluster.engine_client import Batch
from cluster.growing_text import GrowingText, Growth, growing
from cluster.request_counts import ModelCounts
from cluster.request_record import RequestRecord
from cluster.served_model import ServedModel
from cluster.token_watch import TokenWatch


@dataclass(frozen=True, kw_only=True)
class Wish:
    """One prompt and what is to come of it."""

    prompt: tuple[int, ...]
    params: SamplingParams
    namespace: str = ""
    """Of the engine's cache."""
    is_scored_only: bool = False
    """No text is wanted, only the prompt's log-probabilities."""


class Answering:
    """A context: whatever ends it, nothing of it stays at the engine.

    Texts are numbered over all prompts: those of the first, then those of the second.
    """

    def __init__(
        self,
        model: ServedModel,
        name: str,
        wishes: Sequence[Wish],
        counts: ModelCounts,
        record: RequestRecord,
    ) -> None:
        self._model, self._wishes = model, wishes
        self._names = {f"{name}-{number}": number for number in range(len(wishes))}
        self._cached = [0] * len(wishes)
        self.texts = [_growing(model, wish) for wish in wishes for _ in range(wish.params.n)]
        self._watch = TokenWatch(counts, record, self.prompt_tokens, self.texts)

    def __enter__(self) -> Answering:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self.has_begun or not isinstance(error, BusyError | UserError):
            self._watch.end(sum(self._cached), has_failed=isinstance(error, Exception))
        for name in self._names:
            self._model.engine.cancel(name)

    async def growths(self) -> AsyncGenerator[list[tuple[int, Growth]], None]:
        """What is new of which texts. All prompts are taken by the engine, or none."""
        streams = [
            self._model.engine.submit(Request(name, wish.prompt, wish.params, wish.namespace))
            for name, wish in zip(self._names, self._wishes, strict=True)
        ]
        try:
            async for batch in streams[0] if len(streams) == 1 else merged(streams):
                if grown := [one for news in batch if (one := self._take(news))]:
                    self._watch.take(grown)
                    yield grown
        except WorkerError as error:
            self._watch.fail(str(error))
            raise
        except UserError:
            if self.has_begun:
                self._watch.fail("invalid_value")
            raise

    @property
    def has_begun(self) -> bool:
        """There is a token: what goes wrong now is no refusal any more."""
        return any(text.finish or text.output.num_tokens for text in self.texts)

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts."""
        return sum(len(wish.prompt) for wish in self._wishes)

    @property
    def usage(self) -> Usage:
        """So far."""
        prompts = self.prompt_tokens
        generated = sum(text.num_tokens for text in self.texts)
        return Usage(
            prompt_tokens=prompts,
            completion_tokens=generated,
            total_tokens=prompts + generated,
            prompt_tokens_details=PromptDetails(cached_tokens=sum(self._cached)),
        )

    def _take(self, news: Tokens) -> tuple[int, Growth] | None:
        number = self._names[news.request]
        index = number * self._wishes[number].params.n + news.index
        text = self.texts[index]
        if text.finish:
            return None
        if news.failure:
            raise UserError(news.failure)
        if news.usage and news.index == 0:
            self._cached[number] = news.usage.cached_tokens
        growth = text.take(news)
        if text.finish and not news.finish:
            self._model.engine.cancel(news.request, news.index)
        return index, growth


def _growing(model: ServedModel, wish: Wish) -> GrowingText:
    return growing(wish.params, model.words, model.facts.eos, is_hidden=wish.is_scored_only)


async def merged(streams: Sequence[AsyncIterator[Batch]]) -> AsyncIterator[Batch]:
    """What comes first is given first. The first error ends all."""
    reading = {asyncio.ensure_future(_next(stream)): stream for stream in streams}
    try:
        while reading:
            done, _ = await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                stream, batch = reading.pop(task), task.result()
                if batch is not None:
                    yield batch
                    reading[asyncio.ensure_future(_next(stream))] = stream
    finally:
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)


async def _next(stream: AsyncIterator[Batch]) -> Batch | None:
    return await anext(stream, None)
