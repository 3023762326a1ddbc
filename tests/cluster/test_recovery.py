"""Ranks that fail are replaced, and nobody's text shows it; what fails for good says why."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from actors.generator import Generator
from actors.messages import Logprobs, Order, Request, Tokens
from actors.open_generator import planned
from actors.rank_worker import RankSetup
from actors.ranks import SoloRank
from actors.sampling_params import SamplingParams
from builders.engine_manifest import read_engine
from builders.errors import ArtifactError, BusyError, RequestError, UserError, WorkerError
from builders.mapping import Mapping
from builders.sources.hf import open_folder
from cluster.engine_client import facts_of
from cluster.generation import Result, generate
from cluster.recovery import Patience, RecoveringEngine, RecoveringSource
from tests.actors.engines import small
from tests.actors.scenario import LIMITS, NUM_BLOCKS
from tests.builders.test_engine import build
from tests.cluster.test_local_engine import eventually, read
from tests.convert_tools import convert_opened
from tests.tiny import save_llama

QUICK = Patience(first_wait_s=0.01)
Fate = Callable[[Order], None]


@dataclass
class Site:
    """Opens generators for an engine, and says what becomes of their ranks."""

    folder: Path
    fate: Fate = lambda order: None
    """Called with every order; what it raises, the ranks do."""
    failure: BaseException | None = None
    """Of the ranks, told to who looks."""
    errors: list[BaseException] = field(default_factory=list)
    """Of the next openings."""
    gate: threading.Event = field(default_factory=threading.Event)
    """Nothing is opened while it is closed."""
    opened: list[Mortal] = field(default_factory=list)
    num_blocks: int = NUM_BLOCKS

    def __post_init__(self) -> None:
        self.gate.set()

    def open(self) -> Generator:
        self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        ranks = Mortal(RankSetup(engine_dir=self.folder, rank=0, num_blocks=self.num_blocks), self)
        self.opened.append(ranks)
        return planned(ranks, self.num_blocks, read_engine(self.folder), ())

    @property
    def are_closed(self) -> list[bool]:
        return [ranks.is_closed for ranks in self.opened]


class Mortal(SoloRank):
    """A real rank, of which a site has the say."""

    def __init__(self, setup: RankSetup, site: Site) -> None:
        super().__init__(setup)
        self._site, self.is_closed = site, False

    def submit(self, order: Order) -> None:
        self._site.fate(order)
        super().submit(order)

    def check(self) -> None:
        if self._site.failure and self is self._site.opened[-1]:
            failure, self._site.failure = self._site.failure, None
            self._failure = failure
        if found := getattr(self, "_failure", None):
            raise found

    def close(self) -> None:
        self.is_closed = True
        super().close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield small(tmp_path_factory.mktemp("recovery"), Mapping())


@pytest.fixture
def site(folder: Path) -> Site:
    return Site(folder)


def killing(*steps: int) -> Fate:
    """The ranks fail at these orders, as they are counted over all of them."""
    left = iter(range(10**6))

    def fate(_order: Order) -> None:
        if (number := next(left)) in steps:
            raise WorkerError(f"rank 1 on node 10.0.0.7 (pid 4): its process died at {number}")

    return fate


PROMPTS = [(5, 17, 42, 7, 99, 3, 61), (88, 2, 30), (11,)]
PARAMS: list[dict[str, Any]] = [
    {"temperature": 0, "logprobs": 2, "prompt_logprobs": 1},
    {"temperature": 1.0, "seed": 7, "n": 2, "presence_penalty": 0.5, "min_tokens": 9},
    {"temperature": 0, "frequency_penalty": 1.0, "repetition_penalty": 1.3, "stop_token_ids": (4, 9, 60)},
    {"num_beams": 2, "n": 2},
]


@pytest.mark.parametrize("params", PARAMS, ids=["greedy", "drawn", "penalized", "beams"])
@pytest.mark.parametrize("seed", range(3))
def test_texts_are_those_of_an_undisturbed_run(params: dict[str, Any], seed: int, folder: Path) -> None:
    wanted = SamplingParams(max_tokens=14, ignore_eos=True, **params)
    with Site(folder).open() as undisturbed:
        expected = generate(undisturbed, PROMPTS, wanted, words=None)
    fate = killing(*random.Random(seed).sample(range(20), 2 if wanted.num_beams > 1 else 4))
    site = Site(folder, fate)
    with recovering(site) as source:
        same(generate(source, PROMPTS, wanted, words=None), expected)
        assert (
            source.stats().recoveries > 0
            and source.recovering is None
            and source.stats().recovery_seconds > 0
        )
    assert len(site.opened) == 1 + source.stats().recoveries and all(site.are_closed)


def same(found: Sequence[Result], expected: Sequence[Result]) -> None:
    """In other company the last digits of a likelihood may differ."""
    for one, other in zip(found, expected, strict=True):
        assert replace(one, outputs=(), prompt_logprobs=()) == replace(other, outputs=(), prompt_logprobs=())
        alike(one.prompt_logprobs, other.prompt_logprobs)
        for text, as_expected in zip(one.outputs, other.outputs, strict=True):
            assert (text.tokens, text.finish) == (as_expected.tokens, as_expected.finish)
            assert text.score == pytest.approx(as_expected.score, abs=1e-5)
            alike(text.logprobs, as_expected.logprobs)


def alike(found: Sequence[Logprobs], expected: Sequence[Logprobs]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens
        assert (one.sampled, *one.values) == pytest.approx((other.sampled, *other.values), abs=1e-5)


@contextmanager
def recovering(site: Site, patience: Patience = QUICK) -> Iterator[RecoveringSource]:
    source = RecoveringSource("tiny", site.open, patience)
    try:
        yield source
    finally:
        source.close()


def wish(name: str, tokens: int = 6, **params: Any) -> Request:
    return Request(name, (5, 6, 7), SamplingParams(**{"temperature": 0, "max_tokens": tokens, **params}))


def finished(source: RecoveringSource) -> tuple[list[Tokens], list[RequestError]]:
    """All news, and what could not go on."""
    news: list[Tokens] = []
    lost = []
    while source.has_work:
        try:
            news += source.step()
        except RequestError as error:
            lost.append(error)
    return news, lost


def test_the_cause_is_in_the_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.fate = killing(3)
    with recovering(site) as source:
        source.add(wish("r"))
        finished(source)
    first, last = (record.getMessage() for record in caplog.records)
    assert first.startswith(
        "tiny: rank 1 on node 10.0.0.7 (pid 4): its process died at 3; starting its ranks "
    )
    assert first.endswith("anew for 1 requests") and last.startswith("tiny: its ranks are ready again after ")


def poison(*names: str) -> Fate:
    """Ranks fail when one of these requests is theirs."""

    def fate(order: Order) -> None:
        for one in order.plan.admitted:
            if one.request in names:
                raise WorkerError(f"rank 0: KeyError: {one.request}")

    return fate


def test_a_request_on_which_ranks_fail_is_given_up_alone(site: Site) -> None:
    site.fate = poison("bad", "worse")
    names = ["a", "bad", "b", "worse", "c"]
    with recovering(site) as source:
        for name in names:
            source.add(wish(name))
        news, lost = finished(source)
        source.add(wish("later"))
        assert finished(source)[0]
    assert {error.request: str(error) for error in lost} == {
        "bad": "the ranks fail on this request: rank 0: KeyError: bad",
        "worse": "the ranks fail on this request: rank 0: KeyError: worse",
    }
    assert sorted(one.request for one in news if one.finish) == ["a", "b", "c"]


def test_what_waits_for_its_trial_can_be_cancelled(site: Site) -> None:
    """And so can what is tried: the next one's turn comes."""
    site.fate = killing(1, 2)
    with recovering(site) as source:
        source.add(Request("a", (5,) * 25, SamplingParams(n=2)))  # takes several steps to its first token
        for name in "bcd":
            source.add(wish(name, n=2))
        while source.stats().recoveries < 2:
            assert source.step() == []
        assert source.step() == [] and source._trials.current == "a"
        source.cancel("b", 1)
        source.cancel("c")
        source.cancel("a", 0)
        source.cancel("a", 1)
        news, lost = finished(source)
    assert not lost and {(one.request, one.index) for one in news} == {("b", 0), ("d", 0), ("d", 1)}


def test_failing_on_and_on_ends_with_the_first_cause(site: Site) -> None:
    site.fate = killing(*range(2, 100))
    with recovering(site, Patience(failures=4, first_wait_s=0.01)) as source:
        for name in "abcdef":
            source.add(wish(name))
        with pytest.raises(WorkerError, match=r"died at 2; 4 failures in a row$"):
            finished(source)
    assert all(site.are_closed)


def test_ranks_that_do_not_start_are_tried_again(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.fate, site.errors = killing(2), []
    with recovering(site) as source:
        source.add(wish("r"))
        site.errors = [WorkerError("Ray has no room"), OSError("no route")]
        news, lost = finished(source)
    assert news[-1].finish and not lost and len(site.opened) == 2
    assert [record.getMessage() for record in caplog.records][1:3] == [
        "tiny: its ranks do not start: Ray has no room",
        "tiny: its ranks do not start: no route",
    ]


def caused(error: WorkerError, cause: UserError) -> WorkerError:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        ArtifactError("rank1.safetensors: its hash is another"),
        caused(
            WorkerError("rank 1: ArtifactError: rank1.safetensors: its hash is another"), ArtifactError("")
        ),
    ],
)
def test_what_cannot_be_opened_again_is_tried_once(error: Exception, site: Site) -> None:
    site.fate = killing(2)
    with recovering(site) as source:
        source.add(wish("r"))
        site.errors = [error, ZeroDivisionError("it was tried again")]
        with pytest.raises(WorkerError, match=r"died at 2; it cannot be opened again: .*its hash is another"):
            finished(source)
    assert len(site.errors) == 1 and site.are_closed == [True]


def test_another_engine_does_not_go_on(site: Site, tmp_path: Path) -> None:
    site.fate = killing(2)
    with recovering(site) as source:
        source.add(wish("r"))
        model, fewer = open_folder(save_llama(tmp_path / "model")), replace(LIMITS, max_batch_size=1)
        site.folder = build(
            convert_opened(model, Mapping(), tmp_path / "engine"), compiled=False, limits=fewer
        )
        with pytest.raises(WorkerError, match="cannot be opened again: it is another engine now"):
            finished(source)
    assert site.are_closed == [True, True]


def test_who_closes_does_not_wait_for_ranks_to_start(site: Site) -> None:
    """Those that come too late are ended."""
    site.fate = killing(2)

    async def main() -> None:
        engine = opened(site)
        reading = asyncio.ensure_future(read(engine.submit(wish("r"))))
        site.gate.clear()
        await eventually(lambda: engine.load().recovering is not None)
        await engine.close()
        with pytest.raises(WorkerError, match="its process died at 2"):
            await reading

    asyncio.run(main())
    assert site.are_closed == [True]
    site.gate.set()
    asyncio.run(eventually(lambda: site.are_closed == [True, True]))


def opened(site: Site, max_waiting: int = 8) -> RecoveringEngine:
    source = RecoveringSource("tiny", site.open, QUICK)
    facts = facts_of("tiny", source.manifest, source.eos)
    return RecoveringEngine(source, facts, max_waiting=max_waiting)


def test_meanwhile_requests_wait_and_are_cancelled(site: Site) -> None:
    with Site(site.folder).open() as undisturbed:
        undisturbed.add(wish("r", 30))
        expected = [token for _ in range(40) for one in undisturbed.step() for token in one.tokens]
    site.fate = killing(5)

    async def main() -> None:
        engine = opened(site, max_waiting=2)
        site.gate.clear()
        streams = [engine.submit(wish(name, 30)) for name in "ab"]
        await eventually(lambda: engine.load().recovering is not None)
        assert "rank 1 on node" in (engine.load().recovering or "")
        engine.cancel("a")
        streams += [engine.submit(wish(name, 30)) for name in "cd"]
        with pytest.raises(BusyError):
            engine.submit(wish("e"))
        engine.cancel("d")
        site.gate.set()
        found = [await read(stream) for stream in streams]
        await eventually(lambda: engine.load().recovering is None)
        assert engine.stats().recoveries == 1 and engine.stats().recovery_seconds > 0
        await engine.close()
        texts = [[token for one in news for token in one.tokens] for news in found]
        assert texts[1] == texts[2] == expected and texts[3] == []
        assert texts[0] == expected[: len(texts[0])] and len(texts[0]) < 6
        last = found[1][-1].usage
        assert last and (last.prompt_tokens, last.output_tokens) == (3, 30)

    asyncio.run(main())


def test_ranks_that_fail_while_they_wait_are_replaced(site: Site) -> None:
    async def main() -> None:
        engine = opened(site)
        assert engine.stats().recoveries == 0
        site.failure = WorkerError("rank 1: its process died")
        await eventually(lambda: engine.stats().recoveries == 1)
        assert (await read(engine.submit(wish("r"))))[-1].finish
        await engine.close()

    asyncio.run(main())
    assert site.are_closed == [True, True]


def test_who_cannot_go_on_is_told_and_others_do(site: Site) -> None:
    site.fate = poison("bad")

    async def main() -> None:
        engine = opened(site)
        good, bad = engine.submit(wish("good")), engine.submit(wish("bad"))
        with pytest.raises(RequestError, match="the ranks fail on this request"):
            await read(bad)
        assert (await read(good))[-1].finish
        assert engine.load().failure is None
        await engine.close()

    asyncio.run(main())


def test_waits_grow_up_to_a_bound() -> None:
    patience = Patience(first_wait_s=1.0, longest_wait_s=5.0)
    assert [patience.wait_s(failures) for failures in range(1, 7)] == [0, 1, 2, 4, 5, 5]


@pytest.mark.parametrize(("steady_s", "survives"), [(0.0, True), (1e9, False)])
def test_failures_without_work_add_up_if_they_follow_each_other(
    steady_s: float, survives: bool, site: Site
) -> None:
    def fail() -> None:
        site.failure = WorkerError("rank 1: its process died")
        while source.has_work:
            assert source.step() == []

    with recovering(site, Patience(failures=2, steady_s=steady_s)) as source:
        fail()
        if not survives:
            with pytest.raises(WorkerError, match="its process died; 2 failures in a row"):
                fail()
            return
        fail()
        source.add(wish("r"))
        assert finished(source)[0][-1].finish


def test_a_search_that_is_tried_does_not_hold_up_the_others(site: Site) -> None:
    """It has no token before its end."""
    site.fate, site.num_blocks = killing(2, 3), 32
    with recovering(site) as source:
        source.add(wish("search", 40, num_beams=2, ignore_eos=True))
        for name in "ab":
            source.add(wish(name))
        news, lost = finished(source)
    assert not lost and [one.request for one in news if one.finish] == ["a", "b", "search"]


def test_what_a_smaller_cache_cannot_hold_is_told(site: Site) -> None:
    """As on a GPU of which others have taken memory meanwhile."""
    site.fate = killing(3)
    with recovering(site) as source:
        source.add(wish("large", 40))
        source.add(wish("small"))
        site.num_blocks = 8
        news, lost = finished(source)
    assert [one.request for one in news if one.finish] == ["small"]
    (error,) = lost
    assert error.request == "large"
    assert str(error).startswith(
        "the request cannot go on: prompt of 3 tokens and 40 more: may take 11 blocks "
    )
