"""The models that an ingress finds: what Serve says is given here, sockets and tokenizers are real."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview
from starlette.applications import Starlette

from cluster.api import create_app
from cluster.api_config import ApiConfig
from cluster.api_service import Service
from cluster.catalogue import MODEL, RUNNING, Cluster, ServeCatalogue
from cluster.remote_engine import Attend, Call
from cluster.replica import Card
from cluster.wire import Door, NewsPort
from tests.actors.test_detokenizer import byte_level
from tests.cluster.api_server import TEMPLATE
from tests.cluster.fake_engine import named


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Of a tokenizer, as a card has them."""
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_level().save_pretrained(folder)
    return {f"tokenizer/{file.name}": file.read_bytes() for file in folder.iterdir()}


@dataclass
class Served:
    """One model, as Serve has it; a replica of it answers only for its card."""

    card: Card
    running: int = 1
    status: ApplicationStatus = ApplicationStatus.RUNNING
    deployed_s: float = 1.0
    message: str = ""
    error: Exception | None = None
    """In place of its card."""
    starting: asyncio.Event | None = None
    """Until it is set there is no replica."""

    async def card_(self) -> Card:
        if self.starting:
            await self.starting.wait()
        if self.error:
            raise self.error
        return self.card

    @property
    def overview(self) -> ApplicationStatusOverview:
        states: dict[Any, int] = {RUNNING: self.running}
        deployment = DeploymentStatusOverview(cast(Any, "HEALTHY"), cast(Any, ""), states, self.message)
        return ApplicationStatusOverview(self.status, self.message, self.deployed_s, {MODEL: deployment})


@dataclass
class Replicas:
    """Its calls."""

    served: Served

    @property
    def attend(self) -> Attend:
        return self._attend

    def _attend(self, request: bytes, door: Door) -> Call:
        raise AssertionError("nobody generates here")

    async def card(self) -> Card:
        return await self.served.card_()

    async def greet(self, door: Door) -> None:
        pass


@dataclass
class Case:
    """A service over them."""

    catalogue: ServeCatalogue
    service: Service
    app: Starlette
    models: dict[str, Served] = field(default_factory=dict)

    async def look(self) -> None:
        """And wait for what it opens."""
        await self.catalogue.look()
        await self.opened()

    async def waits(self, name: str, count: int) -> None:
        """Until so many requests wait for a model to be open."""
        while not (entry := self.catalogue._entries.get(name)) or entry.waiting < count:
            await asyncio.sleep(0.01)

    async def opened(self) -> None:
        opening = [one.opening for one in self.catalogue._entries.values() if one.opening]
        await asyncio.gather(*opening, return_exceptions=True)


@asynccontextmanager
async def case(models: dict[str, Served], config: ApiConfig | None = None) -> AsyncIterator[Case]:
    config = config or ApiConfig()
    cluster = Cluster(
        applications=lambda: {name: one.overview for name, one in models.items()},
        replicas=lambda name: Replicas(models[name]),
    )
    catalogue = ServeCatalogue(config, cluster, await NewsPort().open("127.0.0.1"))
    app = create_app(lambda: nullcontext(catalogue), config)
    service: Service = app.state.service
    service.follow(catalogue)
    try:
        yield Case(catalogue, service, app, models)
    finally:
        await catalogue.close()


def card(files: dict[str, bytes], name: str = "one", **changes: Any) -> Card:
    found = Card(
        facts=named(name), files=files, chat_template=TEMPLATE, tool_format=None, seconds={"placed": 1.0}
    )
    return replace(found, **changes)


def run(main: Callable[[], Any]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main()

    asyncio.run(bounded())


def encoders() -> int:
    """Threads of theirs."""
    return sum(thread.name.startswith("encoder") for thread in threading.enumerate())


def changed_tokenizer(files: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    tokenizer = byte_level()
    tokenizer.add_tokens(["hello"])
    tokenizer.save_pretrained(folder)
    return {f"tokenizer/{file.name}": file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("what", ["chat_template", "tool_format", "files"])
def test_what_changes_beside_the_engine_counts(files: dict[str, bytes], what: str, tmp_path: Path) -> None:
    """And the thread of what was there before ends."""

    async def main() -> None:
        one = Served(card(files))
        async with case({"one": one}) as it:
            await it.look()
            before = it.service.models["one"]
            changes: dict[str, Any] = {
                "chat_template": "{{ messages[0].content }}",
                "tool_format": "hermes",
                "files": changed_tokenizer(files, tmp_path),
            }
            await before.encoder.text("long " * 400)
            assert encoders() == 1
            one.card, one.deployed_s = replace(one.card, **{what: changes[what]}), 2.0
            await it.look()
            after = it.service.models["one"]
            assert after is not before
            if what == "chat_template":
                assert after.encoder.template == changes[what]
            elif what == "tool_format":
                assert after.tools.form and not before.tools.form
            else:
                assert len(await after.encoder.text("hello")) < len(await before.encoder.text("hello"))
            del before
            while encoders():
                gc.collect()
                await asyncio.sleep(0.01)

    run(main)


def test_another_start_of_the_same_changes_nothing(files: dict[str, bytes]) -> None:
    async def main() -> None:
        one = Served(card(files))
        async with case({"one": one}) as it:
            await it.look()
            before = it.service.models["one"]
            one.card, one.deployed_s = replace(one.card, seconds={"placed": 9.0}), 2.0
            await it.look()
            assert it.service.models["one"] is before

    run(main)


def test_a_model_that_nobody_asked_for_yet_is_listed(files: dict[str, bytes]) -> None:
    async def main() -> None:
        models = {"one": Served(card(files)), "cold": Served(card(files, "cold"), running=0, deployed_s=7.9)}
        async with case(models) as it:
            await it.look()
            assert [*it.service.models] == ["one"] and it.service.closed == {"cold": 7}
            transport = httpx.ASGITransport(it.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                one, cold = (await client.get("/v1/models")).json()["data"]
                assert (one["id"], one["max_model_len"]) == ("one", 8192)
                assert (cold["id"], cold["max_model_len"], cold["created"]) == ("cold", None, 7)
                assert (await client.get("/v1/models/cold")).json() == cold
                missing = (await client.get("/v1/models/none")).json()["error"]["message"]
                assert "use one or cold" in missing
            await it.service.found("cold")
            assert [*it.service.models] == ["one", "cold"] and not it.service.closed

    run(main)


COMPLETION = {"model": "cold", "prompt": "x", "max_tokens": 1}


@asynccontextmanager
async def asking(it: Case) -> AsyncIterator[Callable[[], Coroutine[Any, Any, httpx.Response]]]:
    """For a completion of a model that is cold."""
    transport = httpx.ASGITransport(it.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield lambda: client.post("/v1/completions", json=COMPLETION)


@pytest.mark.parametrize(
    "error", [ActorDiedError(), DeploymentUnavailableError(DeploymentID("Model", "cold"))]
)
def test_a_replica_that_dies_while_its_model_is_opened_is_no_mistake_of_the_caller(
    files: dict[str, bytes], error: Exception
) -> None:
    async def main() -> None:
        async with (
            case({"cold": Served(card(files, "cold"), running=0, error=error)}) as it,
            asking(it) as ask,
        ):
            answer = await ask()
            assert answer.status_code == 503, answer.text
            assert answer.json()["error"]["message"].startswith("cold: cannot be opened: ")

    run(main)


def test_a_model_without_a_tokenizer_is_no_mistake_of_the_caller() -> None:
    async def main() -> None:
        async with case({"cold": Served(card({}, "cold"), running=0)}) as it, asking(it) as ask:
            answer = await ask()
            assert answer.status_code == 503, answer.text
            assert answer.json()["error"]["param"] is None
            assert "cold: has no tokenizer" in answer.json()["error"]["message"]

    run(main)


def test_no_more_than_max_waiting_wait_for_a_model_to_be_open(files: dict[str, bytes]) -> None:
    """And no longer than there is hope."""

    async def main() -> None:
        cold = Served(card(files, "cold"), running=0, starting=asyncio.Event())
        async with case({"cold": cold}, ApiConfig(max_waiting=2)) as it, asking(it) as ask:
            waiting = [asyncio.ensure_future(ask()) for _ in range(2)]
            await it.waits("cold", 2)
            refused = await ask()
            assert refused.status_code == 429 and refused.headers["retry-after"] == "1", refused.text
            assert refused.json()["error"]["message"] == "2 requests wait for cold already"
            cold.status, cold.message = ApplicationStatus.DEPLOY_FAILED, "the engine is damaged"
            await it.catalogue.look()
            for answer in await asyncio.gather(*waiting):
                assert answer.status_code == 503
                assert "the engine is damaged" in answer.json()["error"]["message"]

    run(main)


def test_who_waits_for_a_model_that_is_taken_away_is_told(files: dict[str, bytes]) -> None:
    async def main() -> None:
        cold = Served(card(files, "cold"), running=0, starting=asyncio.Event())
        async with case({"cold": cold}) as it, asking(it) as ask:
            waiting = asyncio.ensure_future(ask())
            await it.waits("cold", 1)
            del it.models["cold"]
            await it.catalogue.look()
            answer = await waiting
            assert answer.status_code == 503 and "is not served any more" in answer.text

    run(main)
