"""Ranks that are killed, stopped or raise while callers read: over HTTP, with real actors, nobody is lost."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from actors.generator import Generator
from actors.messages import Order, StepResult
from actors.open_generator import GeneratorOptions, open_generator
from actors.rank_group import RankGroup
from actors.vigil import Bounds
from cluster.api import create_app
from cluster.api_config import ApiConfig
from cluster.engine_client import facts_of
from cluster.local_app import served
from cluster.recovery import RecoveringEngine, RecoveringSource
from cluster.served_model import ServedModel
from tests.cluster.api_server import serving
from tests.cluster.run_engines import Made, make

pytestmark = pytest.mark.usefixtures("local_ray")

PROMPTS = ["once upon a time", "there was", "a rank", "which did not answer", "any more"]
TOKENS = 160
NUM_BLOCKS = 56
"""Less than three of the texts take: they send each other back to wait."""


@dataclass
class Watched:
    """A group, and what it is told."""

    group: RankGroup
    admitted: Counter[tuple[str, int]] = field(default_factory=Counter)
    is_to_corrupt: bool = False

    def submit(self, order: Order) -> None:
        self.admitted.update((one.request, one.index) for one in order.plan.admitted)
        if self.is_to_corrupt:
            self.group._head.send(1, b"\xc1 is no order")
            self.is_to_corrupt = False
        self.group.submit(order)

    def collect(self) -> StepResult:
        return self.group.collect()

    def check(self) -> None:
        self.group.check()

    def close(self) -> None:
        self.group.close()


@dataclass
class Site:
    """A server of one engine."""

    folder: Path
    made: Made
    opened: list[Watched] = field(default_factory=list)
    sources: list[RecoveringSource] = field(default_factory=list)
    url: str = ""
    attempts: int = 0

    def open(self) -> Generator:
        self.attempts += 1
        options = GeneratorOptions(num_blocks=NUM_BLOCKS, bounds=Bounds(start_s=100, silent_s=6.0))
        generator = open_generator(self.folder, options)
        assert isinstance(generator._ranks, RankGroup)
        generator._ranks = watched = Watched(generator._ranks)
        self.opened.append(watched)
        return generator

    @asynccontextmanager
    async def opening(self) -> AsyncIterator[Sequence[ServedModel]]:
        source = RecoveringSource("tiny", self.open)
        self.sources.append(source)
        engine = RecoveringEngine(source, facts_of("tiny", source.manifest, source.eos))
        model = served(engine, self.made.tokenizer, ApiConfig())
        yield [model]
        await model.close()

    @property
    def source(self) -> RecoveringSource:
        return self.sources[-1]

    @property
    def ranks(self) -> Watched:
        return self.opened[-1]

    def is_ready(self) -> tuple[bool, str]:
        answer = httpx.get(f"{self.url}/ready", timeout=30)
        assert answer.status_code in (200, 503)
        return answer.status_code == 200, answer.text

    def wait(self, *, ready: bool) -> str:
        """What is said then."""
        deadline = time.monotonic() + 100
        while (found := self.is_ready())[0] != ready:
            assert time.monotonic() < deadline, found
            time.sleep(0.02)
        return found[1]


@contextmanager
def running(folder: Path, made: Made) -> Iterator[Site]:
    site = Site(folder, made)
    with serving(create_app(site.opening, ApiConfig())) as site.url:
        yield site


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("recovery"))


@pytest.fixture(scope="module", params=["tp_size", "pp_size"])
def site(request: pytest.FixtureRequest, made: Made) -> Iterator[Site]:
    folder = made.engine(request.param, max_seq_len=256, **{request.param: 2})
    with running(folder, made) as site:
        yield site


@dataclass
class Reading:
    """A caller who streams."""

    url: str
    prompt: str
    text: str = ""
    events: int = 0
    usage: dict[str, Any] | None = None
    error: str | None = None
    is_to_leave: bool = False

    def run(self) -> Reading:
        with httpx.stream("POST", f"{self.url}/v1/completions", json=self._body, timeout=100) as answer:
            assert answer.status_code == 200, answer.read()
            for line in answer.iter_lines():
                if self.is_to_leave:
                    return self
                if line.startswith("data: {"):
                    self._take(json.loads(line.removeprefix("data: ")))
        return self

    @property
    def _body(self) -> dict[str, Any]:
        options = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
        return {"model": "tiny", "prompt": self.prompt, "temperature": 0, "max_tokens": TOKENS, **options}

    def _take(self, event: dict[str, Any]) -> None:
        if "error" in event:
            self.error = event["error"]["message"]
            return
        self.events += 1
        self.usage = event["usage"]
        for choice in event["choices"]:
            self.text += choice["text"]


@contextmanager
def readers(site: Site) -> Iterator[list[tuple[Reading, Future[Reading]]]]:
    """Callers, some of whom have begun to read."""
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        reading = [Reading(site.url, prompt) for prompt in PROMPTS]
        found = [(one, pool.submit(one.run)) for one in reading]
        until(lambda: sum(one.events > 3 for one in reading) > 1 or any(call.done() for _, call in found))
        assert not [call.result() for _, call in found if call.done()], "they read still"
        yield found


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.002)


def signalled(number: signal.Signals) -> Callable[[Site], None]:
    return lambda site: os.kill(site.ranks.group.where[1].pid, number)


def corrupted(site: Site) -> None:
    site.ranks.is_to_corrupt = True


STRIKES = [
    (signalled(signal.SIGKILL), "its process died"),
    (signalled(signal.SIGSTOP), "no sign of life for "),
    (corrupted, "DecodeError: "),
]


@pytest.fixture(scope="module")
def undisturbed(made: Made) -> dict[str, str]:
    return made.texts(PROMPTS, TOKENS)


@pytest.mark.parametrize(("strike", "cause"), STRIKES, ids=["killed", "stopped", "raises"])
def test_nobody_is_lost(
    strike: Callable[[Site], None],
    cause: str,
    site: Site,
    undisturbed: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    site.wait(ready=True)
    struck, recoveries, where = site.ranks, site.source.stats().recoveries, site.ranks.group.where[1]
    with readers(site) as reading:
        strike(site)
        said = site.wait(ready=False)
        assert f"rank 1 on node {where.host} (pid {where.pid}): " in said and cause in said
        (leaver, _), *others = reading
        leaver.is_to_leave = True
        late = Reading(site.url, PROMPTS[1]).run()
        done = [future.result() for _, future in others]
    site.wait(ready=True)
    for one in [late, *done]:
        assert one.error is None and one.text == undisturbed[one.prompt]
        tokens = len(site.made.tokenizer.encode(one.prompt))
        assert one.usage and (one.usage["prompt_tokens"], one.usage["completion_tokens"]) == (tokens, TOKENS)
    until(lambda: not site.source.has_work)
    assert site.source.stats().recoveries == recoveries + 1
    assert any(cause in record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert max(struck.admitted.values()) > 1 or max(site.ranks.admitted.values()) > 1, "the cache was full"


def test_a_group_without_work_is_watched(site: Site) -> None:
    site.wait(ready=True)
    recoveries = site.source.stats().recoveries
    os.kill(site.ranks.group.where[1].pid, signal.SIGKILL)
    assert "its process died" in site.wait(ready=False)
    site.wait(ready=True)
    assert site.source.stats().recoveries == recoveries + 1


def test_a_damaged_engine_is_opened_once(made: Made) -> None:
    """Every caller is told what happened first, and why it was the end."""
    folder = made.engine("damaged", max_seq_len=256, tp_size=2)
    with running(folder, made) as site:
        with readers(site) as reading:
            damage(folder / "rank1.safetensors")
            os.kill(site.ranks.group.where[1].pid, signal.SIGKILL)
            done = [future.result() for _, future in reading]
        said = site.is_ready()
        assert not said[0] and site.attempts == 2
        for words in [said[1], *(one.error or "" for one in done)]:
            assert "its process died" in words and "it cannot be opened again: " in words
            assert "rank1.safetensors" in words


def damage(file: Path) -> None:
    """A copy without its last byte takes its place: who has mapped it keeps what it had."""
    draft = file.with_suffix(".draft")
    draft.write_bytes(file.read_bytes()[:-1])
    draft.rename(file)
