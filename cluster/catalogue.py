"""The models that an ingress serves: whatever Serve runs on this cluster, looked at every so often."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from builders.errors import BusyError, RankforgeError, UserError, WorkerError
from cluster.api_config import ApiConfig
from cluster.api_service import Service
from cluster.local_app import served
from cluster.remote_engine import Attend, RemoteEngine, first_line
from cluster.replica import Card
from cluster.serve_cause import raised_in
from cluster.served_model import ServedModel
from cluster.tokenizer import open_tokenizer
from cluster.wire import Door, NewsPort

MODEL = "Model"
"""The deployment by which an application is known as a model."""

RUNNING = cast(Any, "RUNNING")
"""The state of a replica that takes requests, as Serve counts them."""

_GOING = ApplicationStatus.DELETING
_FAILING = cast(Any, "REPLICA_STARTUP_FAILED")
"""The reason of a deployment's state, where replicas do not start: Serve goes on trying."""
_LOOK_S = 1.0
_RENEWED_S = 0.2
"""While replicas are renewed, those of before take what those of now refuse."""
_LOG = logging.getLogger("ray.serve")


class Replicas(Protocol):
    """Calls of one model's replicas; the first starts one where there is none."""

    @property
    def attend(self) -> Attend: ...

    async def card(self) -> Card: ...

    async def greet(self, door: Door) -> None:
        """Have all of them say how they are; some may be missed."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What is known of the cluster, and how to call it."""

    applications: Callable[[], Mapping[str, ApplicationStatusOverview]]
    """All that there are, by their models' names; waits for Serve."""
    replicas: Callable[[str], Replicas]


@dataclass(eq=False)
class _Entry:
    """A model that Serve knows."""

    status: ApplicationStatusOverview
    served: ServedModel | None = None
    engine: RemoteEngine | None = None
    card: Card | None = None
    replicas: Replicas | None = None
    deployed_s: float = 0.0
    """Of the configuration that `served` was opened with."""
    opening: asyncio.Task[ServedModel] | None = field(default=None)
    waiting: int = 0
    """Requests that wait for it to be open."""

    @property
    def running(self) -> int:
        """Replicas that take requests."""
        return self.status.deployments[MODEL].replica_states.get(RUNNING, 0)

    def leave(self) -> None:
        """Nobody is to find it any more; requests under way have their replica until they end."""
        if self.opening:
            self.opening.cancel()
        if self.engine:
            self.engine.leave()

    @property
    def is_current(self) -> bool:
        return self.served is not None and self.deployed_s == self.status.last_deployed_time_s


class ServeCatalogue:
    """Used from one event loop."""

    def __init__(self, config: ApiConfig, cluster: Cluster, port: NewsPort) -> None:
        self._config, self._cluster, self._port = config, cluster, port
        self._entries: dict[str, _Entry] = {}
        self._service: Service | None = None
        self._has_looked = False

    def attach(self, service: Service) -> None:
        self._service = service
        self._tell()

    async def find(self, name: str | None) -> ServedModel | None:
        if not self._has_looked:
            await self.look()
        if name is None and len(self._entries) == 1:
            (name,) = self._entries
        entry = self._entries.get(name or "")
        if entry is None:
            return None
        return entry.served or await self._waited_for(name or "", entry)

    async def _waited_for(self, name: str, entry: _Entry) -> ServedModel:
        """As many may wait for a model to be open as for one that is: then it takes them, or refuses."""
        if entry.waiting >= (most := self._config.max_waiting):
            raise BusyError(f"{most} requests wait for {name} already")
        entry.waiting += 1
        try:
            opening = None if _hopeless(entry) else self._open(name, entry)
            while opening and not opening.done() and not _hopeless(entry):
                await asyncio.wait({opening}, timeout=_LOOK_S)
        finally:
            entry.waiting -= 1
        if opening and opening.done() and not opening.cancelled():
            return opening.result()
        raise WorkerError(f"{name}: {_hopeless(entry) or 'is not served any more'}")

    def names(self) -> Mapping[str, int]:
        return {name: int(entry.status.last_deployed_time_s) for name, entry in self._entries.items()}

    async def renew(self, name: str) -> None:
        """Some of its replicas have another tokenizer than is known here."""
        if entry := self._entries.get(name):
            with suppress(RayError, RayServeException, RankforgeError):
                await asyncio.shield(self._open(name, entry))
        await asyncio.sleep(_RENEWED_S)

    def problems(self) -> Sequence[str]:
        if not self._has_looked:
            return ["the cluster has not been looked at yet"]
        if not self._entries:
            return ["no model is served yet"]
        return [f"{name}: {why}" for name, entry in self._entries.items() if (why := _problem(entry))]

    async def watch(self) -> None:
        """Until it is cancelled."""
        while True:
            with suppress(RayError, RayServeException):  # the controller starts again, if it died
                await self.look()
            await asyncio.sleep(_LOOK_S)

    async def look(self) -> None:
        """Take in what there is now."""
        found = await asyncio.to_thread(self._cluster.applications)
        there = {name: status for name, status in found.items() if status.status != _GOING}
        for name in self._entries.keys() - there.keys():
            self._entries.pop(name).leave()
        for name, status in there.items():
            if MODEL not in status.deployments:  # no model, or one that is about to be another
                continue
            entry = self._entries.setdefault(name, _Entry(status))
            entry.status, is_sound = status, status.status == ApplicationStatus.RUNNING
            if entry.engine:
                entry.engine.learn(_hopeless(entry))
                entry.engine.reports.expect(entry.running, is_sound=is_sound)
            if entry.running and not entry.is_current and is_sound:
                self._open(name, entry)
        self._has_looked = True
        self._tell()
        await asyncio.gather(*map(self._greet, there))

    async def _greet(self, name: str) -> None:
        """Replicas that nobody here has sent a request to yet."""
        entry = self._entries.get(name)
        if entry and entry.engine and entry.replicas and entry.engine.heard_of() < entry.running:
            await entry.replicas.greet(self._port.door)

    async def close(self) -> None:
        for entry in self._entries.values():
            entry.leave()
            if entry.served:
                await entry.served.close()
        self._port.close()

    def _tell(self) -> None:
        if self._service:
            self._service.serve([entry.served for entry in self._entries.values() if entry.served])

    def _open(self, name: str, entry: _Entry) -> asyncio.Task[ServedModel]:
        """Only one at a time; who waits for it does not end it by leaving."""
        if entry.opening is None:
            entry.opening = asyncio.get_running_loop().create_task(self._opened_or_failed(name, entry))
            entry.opening.add_done_callback(lambda task: _closed(name, entry, task))
        return entry.opening

    async def _opened_or_failed(self, name: str, entry: _Entry) -> ServedModel:
        """What keeps a model from being open is no mistake of who asks for it."""
        try:
            return await self._opened(name, entry)
        except (RayError, RayServeException) as error:
            raise WorkerError(f"{name}: cannot be opened: {first_line(error)}") from error
        except UserError as error:
            raise WorkerError(f"cannot be opened: {error}") from error

    async def _opened(self, name: str, entry: _Entry) -> ServedModel:
        clock = time.monotonic()
        deployed_s, replicas = entry.status.last_deployed_time_s, self._cluster.replicas(name)
        is_settled = entry.status.status == ApplicationStatus.RUNNING  # or the card may be an old replica's
        card = await replicas.card()
        phases = ", ".join(f"{phase} {taken:.2f} s" for phase, taken in card.seconds.items())
        _LOG.info("%s: answers after %.2f s: %s", name, time.monotonic() - clock, phases)
        if is_settled:
            entry.deployed_s = deployed_s
        if entry.served and entry.card and entry.card.is_as(card):
            return entry.served
        engine = RemoteEngine(card.facts, replicas.attend, self._port, words=card.words)
        served = await asyncio.to_thread(_with_words, engine, card, self._config)
        entry.served, entry.engine, entry.card, entry.replicas = served, engine, card, replicas
        self._tell()
        return served


def _closed(name: str, entry: _Entry, task: asyncio.Task[ServedModel]) -> None:
    entry.opening = None
    if not task.cancelled() and (error := task.exception()):
        _LOG.warning("%s: %s", name, error)


def _hopeless(entry: _Entry) -> str | None:
    """Why requests wait in vain, if they would."""
    return _message(entry) if not entry.running and _starts_in_vain(entry) else None


def _starts_in_vain(entry: _Entry) -> bool:
    """Serve has given up, or has tried several times, or people have to mend something first."""
    deployment = entry.status.deployments[MODEL]
    is_for_people = isinstance(raised_in(deployment.message), UserError)
    return (
        entry.status.status == ApplicationStatus.DEPLOY_FAILED
        or deployment.status_trigger == _FAILING
        or is_for_people
    )


def _problem(entry: _Entry) -> str | None:
    """Why it gives no answers now. One with no replicas at all, on purpose, is sound."""
    if entry.running:
        return None if entry.served else "is being opened"
    if entry.engine and _hopeless(entry):
        return None  # it says so itself
    return None if entry.status.status == ApplicationStatus.RUNNING else _message(entry)


def _message(entry: _Entry) -> str:
    state = entry.status.status.value.lower().replace("_", " ")
    said = entry.status.deployments[MODEL].message or entry.status.message
    return f"{state}: {str(raised_in(said))[:500]}" if said else state


def _with_words(engine: RemoteEngine, card: Card, config: ApiConfig) -> ServedModel:
    with tempfile.TemporaryDirectory(prefix="rankforge-") as folder:
        for name, data in card.files.items():
            file = Path(folder) / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(data)
        tokenizer = open_tokenizer(Path(folder), None)
    if tokenizer is None:
        raise UserError(f"{card.facts.name}: has no tokenizer, and serves texts; name one with tokenizer_dir")
    return served(engine, tokenizer, config, chat_template=card.chat_template, tool_format=card.tool_format)


@asynccontextmanager
async def watched(config: ApiConfig, cluster: Cluster, host: str) -> AsyncIterator[ServeCatalogue]:
    """Looks at the cluster as long as it is used."""
    catalogue = ServeCatalogue(config, cluster, await NewsPort().open(host))
    watching = asyncio.get_running_loop().create_task(catalogue.watch())
    try:
        yield catalogue
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await catalogue.close()
