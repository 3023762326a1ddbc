"""A model for Ray Serve whose engine takes no time, or always the same, for `serve.py`."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from ray import serve

from benchmarks.http_server import InstantSource
from cluster.catalogue import MODEL
from cluster.local_engine import LocalEngine
from cluster.replica import Card, Replica
from cluster.serving import ENVIRONMENT, log_with_serve
from cluster.wire import Door
from tests.actors.test_detokenizer import CORPUS, byte_level
from tests.cluster.fake_engine import FACTS

TEMPLATE = "{{ messages[0].content }}"


def source(step_s: float) -> InstantSource:
    return InstantSource(byte_level().encode(" ".join(CORPUS)), step_s)


class FakeModel:
    """What `cluster.serving.Model` does, over a source that computes nothing."""

    async def __init__(self, step_s: float) -> None:  # type: ignore[misc]
        log_with_serve()
        engine = LocalEngine(source(step_s), FACTS, max_waiting=10**6)
        with tempfile.TemporaryDirectory() as folder:
            byte_level().save_pretrained(folder)
            files = {f"tokenizer/{file.name}": file.read_bytes() for file in Path(folder).iterdir()}
        card = Card(facts=FACTS, files=files, chat_template=TEMPLATE, tool_format=None, seconds={})
        self._replica = Replica(engine, card)

    async def attend(self, request: bytes, door: Door) -> None:
        await self._replica.attend(request, door)

    async def card(self) -> Card:
        return self._replica.card


def fake(step_s: float) -> serve.Application:
    """An application; its engine takes `step_s` for a token of every text."""
    options = {"max_ongoing_requests": 10**5, "ray_actor_options": {"runtime_env": {"env_vars": ENVIRONMENT}}}
    return serve.deployment(FakeModel).options(name=MODEL, **options).bind(step_s)


async def direct_first_ms(count: int = 200) -> float:
    """What a first token takes of the same engine, asked from the same process: the median."""
    from statistics import median

    from actors.messages import Request
    from actors.sampling_params import SamplingParams

    engine = LocalEngine(source(0), FACTS, max_waiting=10**6)
    times = []
    for number in range(count):
        start = time.perf_counter()
        stream = engine.submit(Request(str(number), (1, 2, 3), SamplingParams(max_tokens=1)))
        await anext(stream)
        times.append(time.perf_counter() - start)
        await asyncio.sleep(0)
    await engine.close()
    return median(times) * 1e3
