"""An engine behind the wire: replica and ingress in one event loop, real sockets between, and no Ray."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from actors.messages import Begun, Request, Tokens, decode
from actors.sampling_params import SamplingParams
from builders.errors import BusyError, RequestError, UserError, WordsError, WorkerError
from cluster.engine_client import EngineLoad
from cluster.local_engine import LocalEngine
from cluster.remote_engine import RemoteEngine
from cluster.replica import Card, Replica
from cluster.wire import Door, NewsPort, Posted
from tests.cluster.fake_engine import FACTS
from tests.cluster.test_local_engine import Source

HOST = "127.0.0.1"


@dataclass
class Case:
    """Both ends."""

    source: Source
    replica: Replica
    port: NewsPort
    remote: RemoteEngine
    calls: list[asyncio.Task[None]]
    ways: list[Callable[[bytes, Door], Coroutine[Any, Any, None]]]
    """What the next calls do, the last first; others reach the replica."""

    def attend(self, request: bytes, door: Door) -> OneCall:
        way = self.ways.pop() if self.ways else self.replica.attend
        work = way(request, door)
        self.calls.append(asyncio.get_running_loop().create_task(work))
        return OneCall(self.calls[-1])


@dataclass(frozen=True)
class OneCall:
    """As Serve gives it."""

    task: asyncio.Task[None]

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.task.__await__()

    def cancel(self) -> None:
        self.task.cancel()


async def _raising(error: BaseException) -> None:
    raise error


@asynccontextmanager
async def case(source: Source | None = None) -> AsyncIterator[Case]:
    source = source or Source()
    card = Card(facts=FACTS, files={}, chat_template=None, tool_format=None, seconds={})
    replica = Replica(LocalEngine(source, FACTS, max_waiting=4), card)
    port = await NewsPort().open(HOST)
    found = Case(source, replica, port, None, [], [])  # type: ignore[arg-type]
    found.remote = RemoteEngine(FACTS, found.attend, port)
    try:
        yield found
    finally:
        source.max_steps.release(10**6)
        await found.remote.close()
        await replica.close()
        port.close()


def request(name: str = "a", **params: Any) -> Request:
    return Request(name, (1, 2), SamplingParams(**{"max_tokens": 3, **params}))


async def read(stream: AsyncIterator[Any]) -> list[Tokens]:
    return [news async for batch in stream for news in batch]


async def until(what: Any) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.005)


def test_news_come_in_order_and_the_call_ends() -> None:
    async def main() -> None:
        async with case() as it:
            news = await read(it.remote.submit(request(n=2)))
            for index in (0, 1):
                assert [one.tokens for one in news if one.index == index] == [(2,), (1,), (0,)]
            await until(lambda: it.calls[0].done())
            assert it.remote.load() == EngineLoad() == it.replica.engine.load()

    asyncio.run(main())


def test_tokens_of_another_tokenizer_are_refused() -> None:
    """Before the engine has anything of it."""

    async def main() -> None:
        async with case() as it:
            for words, fits in ((it.replica.card.words, True), ("another", False), ("", True)):
                remote = RemoteEngine(FACTS, it.attend, it.port, words=words)
                name = f"from-{words}"
                if fits:
                    assert len(await read(remote.submit(request(name)))) == 3
                else:
                    steps = it.source.steps
                    with pytest.raises(WordsError, match="its tokenizer has changed"):
                        await read(remote.submit(request(name)))
                    assert it.source.steps == steps
                await remote.close()

    asyncio.run(main())


def test_many_requests_at_once() -> None:
    async def main() -> None:
        async with case() as it:
            streams = [it.remote.submit(request(str(number), max_tokens=50)) for number in range(4)]
            for stream in streams:
                assert len(await read(stream)) == 50

    asyncio.run(main())


def test_load_counts_who_waits_and_who_has_tokens() -> None:
    async def main() -> None:
        async with case() as it:
            it.source.max_steps = threading.Semaphore(0)
            stream = it.remote.submit(request())
            assert it.remote.load() == EngineLoad(waiting=1)
            it.source.max_steps.release()
            await anext(stream)
            assert it.remote.load() == EngineLoad(running=1)
            it.remote.cancel("a")
            assert it.remote.load() == EngineLoad()

    asyncio.run(main())


@pytest.mark.parametrize("index", [None, 1])
def test_a_cancellation_reaches_the_engine(index: int | None) -> None:
    async def main() -> None:
        async with case() as it:
            stream = it.remote.submit(request(n=2, max_tokens=10**9))
            await anext(stream)
            it.remote.cancel("a", index)
            await until(lambda: ("a", 1) not in it.source.texts)
            assert (("a", 0) in it.source.texts) == (index is not None)
            it.remote.cancel("a")
            await until(lambda: it.calls[0].done() and not it.source.texts)

    asyncio.run(main())


def test_a_request_that_no_replica_has_yet_is_cancelled_at_serve() -> None:
    async def main() -> None:
        async with case() as it:
            it.remote.submit(request())
            it.remote.cancel("a")
            await until(lambda: it.calls[0].cancelled())
            assert it.remote.load() == EngineLoad() and not it.source.texts

    asyncio.run(main())


def test_what_a_replica_takes_after_it_was_cancelled_is_dropped() -> None:
    async def main() -> None:
        async with case() as it:
            it.remote.submit(request(max_tokens=10**9))
            it.port.forget("a")  # as where the cancellation of the call is lost
            await until(lambda: it.calls[0].done() and not it.source.texts)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("wish", "kind", "message"),
    [
        (Request("a", (), SamplingParams()), UserError, "prompt of 0 tokens"),
        (request(), BusyError, "wait already"),
    ],
)
def test_refusals_are_raised_here(wish: Request, kind: type[Exception], message: str) -> None:
    async def main() -> None:
        async with case() as it:
            if kind is BusyError:
                it.source.max_steps = threading.Semaphore(0)
                others = [it.remote.submit(request(f"other{number}")) for number in range(4)]
                await until(lambda: it.replica.engine.load().waiting == 4)
            with pytest.raises(kind, match=message):
                await read(it.remote.submit(wish))
            it.source.max_steps.release(10**6)
            for other in others if kind is BusyError else ():
                await read(other)

    asyncio.run(main())


def test_an_engine_that_fails_says_why() -> None:
    async def main() -> None:
        async with case(Source(error=WorkerError("rank 1 died"))) as it:
            with pytest.raises(WorkerError, match="fake: the engine failed: rank 1 died"):
                await read(it.remote.submit(request()))
            with pytest.raises(WorkerError, match="rank 1 died"):
                it.replica.check()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ActorDiedError(), WorkerError, "its replicas die: ActorDiedError"),
        (BackPressureError(num_queued_requests=3, max_queued_requests=2), BusyError, "max_queued_requests"),
    ],
)
def test_what_serve_raises(error: BaseException, kind: type[Exception], message: str) -> None:
    async def main() -> None:
        async with case() as it:
            it.ways += [lambda _request, _door: _raising(error)] * 9
            with pytest.raises(kind, match=message):
                await read(it.remote.submit(request()))
            load = it.remote.load()
            assert (load.running, load.waiting, load.failure) == (0, 0, None)

    asyncio.run(main())


def test_another_replica_goes_on_where_one_died() -> None:
    """It is told what there is of a text; and the dead one is not heard any more."""

    async def main() -> None:
        async with case() as it:
            it.source.max_steps = threading.Semaphore(2)
            heard: list[Tokens] = []
            sent: list[Request] = []

            async def dies(data: bytes, door: Door) -> None:
                attending = asyncio.ensure_future(it.replica.attend(data, door))
                await until(lambda: len(heard) == 2)
                attending.cancel()
                raise ActorDiedError()

            async def lives(data: bytes, door: Door) -> None:
                sent.append(decode(Request, data))
                it.source.max_steps.release(10**6)
                await it.replica.attend(data, door)

            it.ways += [lives, dies]
            async for batch in it.remote.submit(request(max_tokens=5)):
                heard += batch
            assert [one.tokens for one in heard] == [(4,), (3,), (4,), (3,), (2,), (1,), (0,)]
            assert {one.request for one in heard} == {"a"}
            (again,) = sent
            assert (again.id, again.begun) == ("a~1", Begun(((4, 3),)))
            assert again.params.seed is not None
            await until(lambda: it.remote.load() == EngineLoad() == it.replica.engine.load())

    asyncio.run(main())


def test_another_replica_goes_on_where_an_engine_failed() -> None:
    """As long as one is known whose engine works; its own failure is told where there is none."""

    async def main() -> None:
        async with case() as it:
            source = Source(max_steps=threading.Semaphore(2))
            failing = Replica(LocalEngine(source, FACTS), it.replica.card)
            it.replica.greet(it.port.door)
            it.ways += [failing.attend] * 3  # Serve does not know yet
            stream = it.remote.submit(request(max_tokens=5))
            heard = [*await anext(stream)]
            while len(heard) < 2:
                heard += await anext(stream)
            source.error = WorkerError("rank 1 died")
            source.max_steps.release(10**6)
            heard += await read(stream)
            await failing.close()
            assert [one.tokens for one in heard] == [(4,), (3,), (4,), (3,), (2,), (1,), (0,)]
            assert not it.ways and it.remote.load().failure is None
            assert "rank 1 died" in (it.remote.load().recovering or "")

    asyncio.run(main())


def test_a_request_that_ranks_fail_on_is_not_sent_to_others() -> None:
    async def main() -> None:
        async with case() as it:
            source = Source()
            blaming = Replica(LocalEngine(source, FACTS), it.replica.card)
            it.replica.greet(it.port.door)

            async def fails(data: bytes, door: Door) -> None:
                source.error = RequestError(decode(Request, data).id, "the ranks fail on this request")
                await blaming.attend(data, door)

            it.ways += [fails, fails]
            await until(lambda: it.remote.heard_of() == 1)
            with pytest.raises(RequestError, match="the ranks fail on this request"):
                await read(it.remote.submit(request()))
            assert len(it.ways) == 1
            await blaming.close()

    asyncio.run(main())


def test_replicas_are_heard_of_before_any_request() -> None:
    async def main() -> None:
        async with case() as it:
            assert it.remote.heard_of() == 0
            it.replica.greet(it.port.door)
            await until(lambda: it.remote.heard_of() == 1)
            it.source.error = WorkerError("rank 1 died")
            it.replica.engine.submit(request("elsewhere"))
            await until(lambda: "rank 1 died" in (it.remote.load().failure or ""))

    asyncio.run(main())


def test_a_replica_that_is_gone_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it said last does not keep its model from being ready."""
    monkeypatch.setattr("cluster.replica_reports._HEARD_S", 2.5)

    async def main() -> None:
        async with case(Source(error=WorkerError("rank 1 died"))) as it:
            it.replica.greet(it.port.door)
            it.replica.engine.submit(request("elsewhere"))
            await until(lambda: it.remote.load().failure)
            await it.replica.close()
            await until(lambda: it.remote.load() == EngineLoad() and not it.remote.heard_of())

    asyncio.run(main())


def test_a_replica_that_died_is_told_of_at_once() -> None:
    """Where it was and how it ended, until another one is there."""
    died = ActorDiedError()
    died.error_msg = "The actor is dead because its worker process was killed"

    async def main() -> None:
        async with case() as it:
            first = Replica(LocalEngine(it.source, FACTS), it.replica.card, "rank 0 on node n1 (pid 7)")
            is_over = asyncio.Event()

            async def dies(data: bytes, door: Door) -> None:
                attending = asyncio.ensure_future(first.attend(data, door))
                (visit,) = it.remote._visits.values()
                await until(lambda: it.remote.heard_of() and visit.sender)
                attending.cancel()
                raise died

            async def waits(data: bytes, door: Door) -> None:
                await is_over.wait()
                await it.replica.attend(data, door)

            it.ways += [waits, dies]
            it.source.max_steps = threading.Semaphore(0)
            stream = it.remote.submit(request())
            first.greet(it.port.door)
            await until(lambda: it.remote.load().recovering)
            cause = "fake: rank 0 on node n1 (pid 7): its process died (its worker process was killed)"
            assert it.remote.load().recovering == cause
            it.remote.reports.expect(0, is_sound=False)  # Serve has noticed
            assert it.remote.load().recovering == cause
            is_over.set()
            it.source.max_steps.release(10**6)
            await read(stream)
            it.replica.greet(it.port.door)
            await until(lambda: not it.remote.load().recovering)
            await first.close()

    asyncio.run(main())


def test_silence_of_replicas_that_serve_believes_in_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.replica_reports._MISSED_S", 0.5)

    async def main() -> None:
        async with case() as it:
            it.remote.reports.expect(1, is_sound=True)
            it.replica.greet(it.port.door)
            await until(lambda: it.remote.heard_of())
            await it.replica.close()
            await until(lambda: "its replica: has not been heard of" in (it.remote.load().recovering or ""))
            it.remote.reports.expect(0, is_sound=True)  # it was one too many
            assert it.remote.load().recovering is None

    asyncio.run(main())


def test_what_a_replica_has_counted_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it was silent before it was heard again; and when it is gone, too."""

    async def main() -> None:
        async with case() as it:
            await read(it.remote.submit(request()))
            it.replica.greet(it.port.door)
            await until(lambda: it.remote.stats().preemptions == 3)
            monkeypatch.setattr("cluster.replica_reports._SILENT_S", -1.0)
            assert it.remote.stats().preemptions == 3 and not it.remote.heard_of()
            monkeypatch.undo()
            it.replica.greet(it.port.door)
            await until(it.remote.heard_of)
            assert it.remote.stats().preemptions == 3
            monkeypatch.setattr("cluster.replica_reports._SILENT_S", -1.0)
            monkeypatch.setattr("cluster.replica_reports._MOST_SILENT", 0)
            assert it.remote.stats().preemptions == 3 == it.remote.stats().preemptions

    asyncio.run(main())


def test_an_ingress_that_is_gone_frees_the_engine() -> None:
    async def main() -> None:
        async with case() as it:
            stream = it.remote.submit(request(max_tokens=10**9))
            await anext(stream)
            it.port.close()
            await until(lambda: not it.source.texts)

    asyncio.run(main())


def test_a_model_that_is_taken_away_ends_who_waits_and_nobody_else() -> None:
    async def main() -> None:
        async with case() as it:
            running = it.remote.submit(request("running"))
            await anext(running)
            waiting = it.remote.submit(request("waiting"))
            it.remote.leave()
            with pytest.raises(WorkerError, match="is not served any more"):
                await read(waiting)
            with pytest.raises(WorkerError, match="is not served any more"):
                it.remote.submit(request("late"))
            await read(running)

    asyncio.run(main())


def test_where_no_replica_starts_nobody_waits_and_the_first_cause_is_told() -> None:
    """Until one does."""

    async def main() -> None:
        async with case(Source(error=WorkerError("rank 1 died"))) as it:
            it.replica.greet(it.port.door)
            with pytest.raises(WorkerError, match="rank 1 died"):
                await read(it.remote.submit(request()))
            await until(lambda: it.remote.load().failure)
            await it.replica.close()
            it.ways.append(never)
            waiting = it.remote.submit(request("waiting"))
            it.remote.learn("unhealthy: a file is damaged")
            why = "^fake: the engine failed: rank 1 died; unhealthy: a file is damaged$"
            for wish in (lambda: read(waiting), lambda: read(it.remote.submit(request("late")))):
                with pytest.raises(WorkerError, match=why):
                    await wish()
            await until(lambda: it.calls[1].cancelled())
            it.ways.append(never)
            it.remote.learn(None)
            it.remote.submit(request("later"))
            assert it.remote.load().waiting == 1

    asyncio.run(main())


async def never(_request: bytes, _door: Door) -> None:
    """No replica takes it."""
    await asyncio.Event().wait()


def test_who_does_not_know_the_secret_is_not_heard() -> None:
    async def main() -> None:
        async with case() as it:
            it.source.max_steps = threading.Semaphore(0)
            stream = it.remote.submit(request())
            lie = msgspec.msgpack.encode(Posted(news=(Tokens("a", 0, (9,), "stop"),)))
            reader, writer = await asyncio.open_connection(it.port.door.host, it.port.door.port)
            writer.write(bytes(16) + len(lie).to_bytes(4) + lie)
            assert await reader.read() == b""
            writer.close()
            it.source.max_steps.release(10**6)
            assert [one.tokens for one in await read(stream)] == [(2,), (1,), (0,)]

    asyncio.run(main())
