"""An engine in a thread behind an event loop: hand-over, cancellation, failure, end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from actors.engine_stats import EngineStats
from actors.messages import Request, Tokens
from actors.open_generator import GeneratorOptions, open_generator
from actors.sampling_params import SamplingParams
from builders.errors import BusyError, UserError, WorkerError
from builders.mapping import Mapping
from cluster.engine_client import Batch, EngineLoad, facts_of
from cluster.local_engine import LocalEngine
from tests.actors.engines import PROMPTS, engine, oracle
from tests.cluster.fake_engine import FACTS


@dataclass
class Source:
    """One token a step for everyone, when it is let."""

    max_steps: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(10**6))
    error: BaseException | None = None
    """Of the next step."""
    texts: dict[tuple[str, int], int] = field(default_factory=dict)
    threads: set[int] = field(default_factory=set)
    steps: int = 0
    looked: int = 0
    """How often it was asked for work."""
    is_closed: bool = False

    limits, eos = FACTS.limits, FACTS.eos

    @property
    def has_work(self) -> bool:
        self.looked += 1
        return bool(self.texts)

    def add(self, request: Request) -> None:
        self.threads.add(threading.get_ident())
        if not request.prompt:
            raise UserError("prompt of 0 tokens: must have from 1 to 9; lengthen it")
        self.texts |= {(request.id, index): request.params.max_tokens for index in range(request.params.n)}

    def cancel(self, request: str, index: int | None = None) -> None:
        self.texts = {
            text: left
            for text, left in self.texts.items()
            if text[0] != request or index not in (None, text[1])
        }

    def stats(self) -> EngineStats:
        return EngineStats(preemptions=self.steps)

    def step(self) -> list[Tokens]:
        self.threads.add(threading.get_ident())
        while not self.max_steps.acquire(timeout=0.01):
            pass
        self.steps += 1
        if self.error:
            raise self.error
        self.texts = {text: left - 1 for text, left in self.texts.items()}
        news = [Tokens(*text, (left,), None if left else "length") for text, left in self.texts.items()]
        self.texts = {text: left for text, left in self.texts.items() if left}
        return news

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.is_closed = True


@asynccontextmanager
async def running(source: Source, max_waiting: int = 8) -> AsyncIterator[LocalEngine]:
    found = LocalEngine(source, FACTS, max_waiting=max_waiting)
    try:
        yield found
    finally:
        await found.close()


def wish(name: str, tokens: int = 3, n: int = 1) -> Request:
    return Request(name, (5,), SamplingParams(max_tokens=tokens, n=n))


async def read(stream: AsyncIterator[Batch]) -> list[Tokens]:
    return [news async for batch in stream for news in batch]


async def eventually(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.005)


def test_everyone_gets_what_is_theirs() -> None:
    source = Source()

    async def main() -> None:
        async with running(source) as engine:
            streams = [engine.submit(wish(name, tokens)) for name, tokens in (("a", 3), ("b", 5), ("c", 1))]
            for name, tokens, stream in zip("abc", (3, 5, 1), streams, strict=True):
                news = await read(stream)
                assert [one.tokens for one in news] == [(left,) for left in reversed(range(tokens))]
                assert {one.request for one in news} == {name}
            assert engine.load() == EngineLoad()

    asyncio.run(main())
    assert source.is_closed and len(source.threads) == 1


def test_a_slow_reader_gets_more_at_once() -> None:
    async def main() -> None:
        source = Source()
        async with running(source) as engine:
            stream = engine.submit(wish("a", 5))
            await eventually(lambda: not source.texts and source.steps == 5)
            await eventually(lambda: engine.load().running == 0)
            assert [len(batch) async for batch in stream] == [5]

    asyncio.run(main())


def test_an_idle_engine_is_left_alone() -> None:
    async def main() -> None:
        source = Source()
        async with running(source) as engine:
            await read(engine.submit(wish("a")))
            looked = source.looked
            await asyncio.sleep(0.05)
            assert source.looked <= looked + 1
            await read(engine.submit(wish("b")))

    asyncio.run(main())


def test_what_is_cancelled_takes_no_more_steps() -> None:
    async def main() -> None:
        source = Source()
        async with running(source) as engine:
            whole, other = engine.submit(wish("a", 10**6, n=2)), engine.submit(wish("b", 10**6))
            await anext(whole)
            engine.cancel("a", 1)
            await eventually(lambda: ("a", 1) not in source.texts)
            assert ("a", 0) in source.texts
            engine.cancel("a")
            engine.cancel("a")
            engine.cancel("never heard of")
            rest = await read(whole)
            assert all(not one.finish for one in rest)
            await eventually(lambda: {name for name, _ in source.texts} == {"b"})
            assert engine.load() == EngineLoad(running=1)
            engine.cancel("b")
            await read(other)
            await eventually(lambda: not source.has_work)

    asyncio.run(main())


def test_what_can_never_be_done_is_told_to_who_asked() -> None:
    async def main() -> None:
        async with running(Source()) as engine:
            good = engine.submit(wish("a"))
            with pytest.raises(UserError, match="prompt of 0 tokens"):
                await read(engine.submit(Request("b", (), SamplingParams())))
            assert len(await read(good)) == 3
            assert engine.load() == EngineLoad()

    asyncio.run(main())


def test_more_than_may_wait() -> None:
    async def main() -> None:
        source = Source(max_steps=threading.Semaphore(0))
        async with running(source, max_waiting=2) as engine:
            streams = [engine.submit(wish(name)) for name in "ab"]
            assert engine.load() == EngineLoad(waiting=2)
            with pytest.raises(BusyError, match="2 requests wait already"):
                engine.submit(wish("c"))
            engine.cancel("a")
            engine.submit(wish("c"))
            source.max_steps.release(10)
            assert await read(streams[0]) == [] and len(await read(streams[1])) == 3

    asyncio.run(main())


@pytest.mark.parametrize("error", [WorkerError("rank 1 died: killed"), ZeroDivisionError("a bug")])
def test_a_failure_ends_all_streams_with_its_cause(error: Exception) -> None:
    async def main() -> None:
        source = Source(max_steps=threading.Semaphore(1))
        async with running(source) as engine:
            streams = [engine.submit(wish(name)) for name in "ab"]
            await eventually(lambda: source.steps == 1)
            source.error = error
            source.max_steps.release()
            for stream in streams:
                with pytest.raises(WorkerError, match=f"the engine failed: .*{error}") as raised:
                    await read(stream)
                assert raised.value.__cause__ is error
            assert str(error) in (engine.load().failure or "")
            with pytest.raises(WorkerError, match=str(error)):
                engine.submit(wish("c"))
            assert source.is_closed

    asyncio.run(main())


def test_closing_ends_what_is_under_way() -> None:
    async def main() -> None:
        async with running(Source()) as engine:
            reading = asyncio.ensure_future(read(engine.submit(wish("a", 10**6))))
            await eventually(lambda: engine.load().running == 1)
        with pytest.raises(WorkerError, match="the engine was closed"):
            engine.submit(wish("b"))
        with pytest.raises(WorkerError, match="the engine was closed"):
            await reading

    asyncio.run(main())


def test_a_real_engine(tmp_path: Path) -> None:
    """What Transformers says, to many who come and go."""
    known = oracle("llama2-gqa", tmp_path / "model")
    source = open_generator(
        engine(known.folder, Mapping(), tmp_path / "engine"), GeneratorOptions(num_blocks=64)
    )

    async def ask(client: LocalEngine, number: int) -> None:
        prompt, expected = PROMPTS[number % 3], known.greedy[number % 3]
        params = SamplingParams(temperature=0, max_tokens=len(expected), ignore_eos=True)
        stream = client.submit(Request(str(number), tuple(prompt), params))
        found: list[int] = []
        async for batch in stream:
            found += [token for news in batch for token in news.tokens]
            if number % 4 == 3:
                client.cancel(str(number))
        assert found == expected[: len(found)] and (number % 4 == 3 or found == expected)

    async def main() -> None:
        client = LocalEngine(source, facts_of("tiny", source.manifest, source.eos))
        await asyncio.gather(*(ask(client, number) for number in range(24)))
        await eventually(lambda: not source.has_work)
        source.check_integrity()
        await client.close()

    asyncio.run(main())
