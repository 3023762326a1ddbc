"""What the API needs of an engine, wherever it runs: five methods, all of which a remote one can have too."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from actors.engine_stats import EngineStats
from actors.messages import Request, Tokens
from builders.engine_manifest import EngineManifest
from builders.limits import Limits

Batch = Sequence[Tokens]
"""All news of one request since its reader last looked: a slow reader gets more at once, not later."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What does not change while an engine runs."""

    name: str
    """As callers ask for it."""
    limits: Limits
    vocab_size: int
    eos: frozenset[int]
    """Tokens that end a text."""
    key: str
    """Equal for engines made of the same parts."""


def facts_of(name: str, manifest: EngineManifest, eos: frozenset[int]) -> ModelFacts:
    """Of an engine that has been opened."""
    return ModelFacts(
        name=name,
        limits=manifest.limits,
        vocab_size=manifest.checkpoint.spec.vocab_size,
        eos=eos,
        key=manifest.key,
    )


@dataclass(frozen=True, kw_only=True)
class EngineLoad:
    """How busy an engine is: of a remote one, as far as is known here."""

    running: int = 0
    """Requests that have begun to get tokens."""
    waiting: int = 0
    """Requests that have none yet."""
    failure: str | None = None
    """Why it takes no requests."""
    recovering: str | None = None
    """Why its ranks are being started anew: requests are taken, and wait."""


class EngineClient(Protocol):
    """Used from one event loop; nothing here waits but the streams, and `close`."""

    @property
    def facts(self) -> ModelFacts: ...

    def submit(self, request: Request) -> AsyncIterator[Batch]:
        """The news of a request. BusyError, and WorkerError of an engine that failed: here or there.

        There, too: UserError for what can never be done, before any news; WorkerError where the engine fails
        later. The news end when every text has, or is cancelled. Who reads no further must cancel.
        """

    def cancel(self, request: str, index: int | None = None) -> None:
        """End a request's texts, or one of them, without further news; if they ended already, do nothing."""

    def load(self) -> EngineLoad:
        """Costs nothing: asked for with every request."""

    def stats(self) -> EngineStats:
        """What it has counted of its own work: of a remote one, as was heard last."""

    async def close(self) -> None:
        """Streams that are open end with an error."""
