"""One replica of a model: its engine, opened and proved, and the requests that ingresses send to it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import ray

from actors.messages import Request, decode
from actors.open_generator import GeneratorOptions, open_generator
from actors.sampling_params import SamplingParams
from builders.engine_manifest import EngineManifest
from builders.errors import RankforgeError, UserError, WordsError, WorkerError
from builders.keys import content_key
from cluster.engine_client import ModelFacts, facts_of
from cluster.local_engine import LocalEngine
from cluster.recovery import RecoveringEngine, RecoveringSource
from cluster.reopening import is_for_people
from cluster.serve_config import ModelConfig
from cluster.tool_formats import ToolFormatName
from cluster.wire import Door, Dropped, NewsLine, Report

_LOG = logging.getLogger("ray.serve")
_PROOF = "first-token"
_REPORT_S, _LOOK_S = 1.0, 0.1
"""How often ingresses hear of it, and how soon of what they must know: its ranks fail, or are there again."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What an ingress has to know of a model, wherever its engine lies."""

    facts: ModelFacts
    files: Mapping[str, bytes]
    """Of the engine's folder: its config.json, and its tokenizer's."""
    chat_template: str | None
    tool_format: ToolFormatName | None
    seconds: Mapping[str, float]
    """The replica's start, by phase."""

    @property
    def words(self) -> str:
        """Equal for equal tokenizers."""
        files = self.files.items()
        return content_key(
            **{name: sha256(data).hexdigest() for name, data in files if name.startswith("tokenizer/")}
        )

    def is_as(self, other: Card) -> bool:
        """Whether an ingress need not know the difference."""
        return replace(self, seconds={}) == replace(other, seconds={})


class Replica:
    """For one event loop. Every request is a call of Serve's that lasts as long as the request."""

    def __init__(self, engine: LocalEngine, card: Card, whereabouts: str = "") -> None:
        self.engine, self.card, self._words = engine, card, card.words
        self._whereabouts = whereabouts
        self._lines: dict[bytes, NewsLine] = {}
        self._reporting = asyncio.get_running_loop().create_task(self._report())

    async def attend(self, data: bytes, door: Door) -> None:
        """Send a request's news to whoever asks, until there are no more, or nobody wants them."""
        request = decode(Request, data)
        line = self._line(door)
        line.requests.add(request.id)
        try:
            self._check_words(door)
            stream = self.engine.submit(request)
            line.taken(request.id)
            await stream.passed_to(line.news)
        except RankforgeError as error:
            line.failed(request.id, error)
        finally:
            line.requests.discard(request.id)
            self.engine.cancel(request.id)

    def _check_words(self, door: Door) -> None:
        """An ingress hears of a change some time after the first replicas that have it."""
        if door.words and door.words != self._words:
            raise WordsError(f"{self.card.facts.name}: its tokenizer has changed; try again")

    def greet(self, door: Door) -> None:
        """An ingress wants to hear of it, before any request."""
        self._line(door).report(self._state())

    def check(self) -> None:
        """Raise why it takes no requests, if so."""
        if failure := self.engine.load().failure:
            raise WorkerError(failure)

    async def _report(self) -> None:
        last, said = -_REPORT_S, None
        while True:
            load, now = self.engine.load(), time.monotonic()
            is_news = (load.recovering, load.failure) != said
            if is_news or now - last >= _REPORT_S:
                last, said, state = now, (load.recovering, load.failure), self._state()
                for line in self._lines.values():
                    line.report(state)
            await asyncio.sleep(_LOOK_S)

    def _state(self) -> Report:
        load = self.engine.load()
        stats, where = self.engine.stats(), self._whereabouts
        return Report(self.card.facts.name, stats, load.recovering, load.failure, where)

    async def close(self) -> None:
        self._reporting.cancel()
        await self.engine.close()
        for line in [*self._lines.values()]:
            line.close()

    def _line(self, door: Door) -> NewsLine:
        if (line := self._lines.get(door.secret)) is None:
            line = NewsLine(door, self._dropped, self._lost)
            self._lines[door.secret] = line
        return line

    def _dropped(self, dropped: Dropped) -> None:
        self.engine.cancel(dropped.request, dropped.index)

    def _lost(self, line: NewsLine) -> None:
        """Nobody reads what its requests would still give."""
        self._lines.pop(line.door.secret, None)
        for request in [*line.requests]:
            self.engine.cancel(request)
        line.close()


async def open_replica(
    name: str, config: ModelConfig, engine_dir: Path, options: GeneratorOptions, seconds: Mapping[str, float]
) -> Replica:
    """Returns when a token has come through every rank."""
    clock = time.monotonic()
    source = await asyncio.to_thread(_opened, name, engine_dir, options)
    loaded = time.monotonic()
    facts = facts_of(name, source.manifest, source.eos)
    engine = RecoveringEngine(source, facts, max_waiting=config.max_ongoing)
    try:
        await _prove(engine)
    except RankforgeError:
        await engine.close()
        raise
    spent = {**seconds, "loaded": loaded - clock, "first token": time.monotonic() - loaded}
    spent = {phase: round(taken, 3) for phase, taken in spent.items()}
    _LOG.info("%s: ready: %s", name, ", ".join(f"{phase} {taken:.2f} s" for phase, taken in spent.items()))
    tokenizer = config.tokenizer_dir or engine_dir / "tokenizer"
    card = Card(
        facts=engine.facts,
        files={"config.json": (engine_dir / "config.json").read_bytes(), **_files(tokenizer)},
        chat_template=config.chat_template,
        tool_format=config.tool_format,
        seconds=spent,
    )
    return Replica(engine, card, _whereabouts(source.manifest))


def _whereabouts(engine: EngineManifest) -> str:
    """Of this process; it holds rank 0 as `engine_maker.needs` has it."""
    is_beside = engine.target != "cpu" and engine.checkpoint.mapping.world_size > 1
    host = ray.util.get_node_ip_address()
    return f"{'its replica' if is_beside else 'rank 0'} on node {host} (pid {os.getpid()})"


def _opened(name: str, engine_dir: Path, options: GeneratorOptions) -> RecoveringSource:
    try:
        return RecoveringSource(name, partial(open_generator, engine_dir, options))
    except WorkerError as error:
        if is_for_people(error):  # Serve passes on no more than what is raised
            raise UserError(str(error)) from error
        raise


async def _prove(engine: LocalEngine) -> None:
    """One token of a prompt, and one after it, which is another way through an engine."""
    count = min(2, engine.facts.limits.max_seq_len - 1)
    params = SamplingParams(max_tokens=count, temperature=0, ignore_eos=True)
    async for _ in engine.submit(Request(_PROOF, (0,), params)):
        pass


def _files(tokenizer: Path) -> dict[str, bytes]:
    if not tokenizer.is_dir():
        return {}
    return {f"tokenizer/{file.name}": file.read_bytes() for file in tokenizer.iterdir() if file.is_file()}
