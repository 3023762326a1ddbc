"""Units of work: what is built once, found again by its key, and shared by the ranks that need the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from builders.checkpoint import Manifest
from builders.engine_manifest import EngineManifest, Unit
from builders.keys import Recipe
from builders.limits import Limits
from builders.store import Store

Heard = Callable[[float], None]
"""Hears how much of a unit is done, 0 to 1."""


class UnitOfWork(Protocol):
    """One program or plan to build; plain data that a worker can be sent."""

    @property
    def recipe(self) -> Recipe:
        """Its content key, and what the key is made of."""

    def build(self, folder: Path, store: Store, heard: Heard) -> None:
        """Write its files; the store holds what one build may learn from another."""


class Plan(Protocol):
    """Everything that an engine takes beside its weights."""

    @property
    def units(self) -> Sequence[UnitOfWork]:
        """Each once, however many ranks need it."""

    @property
    def num_programs(self) -> int:
        """How many different things the ranks run."""

    @property
    def holds_weights(self) -> bool:
        """Whether the units do, so that the engine needs no rank files."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Of the libraries that decide what is built."""

    def manifest(self, checkpoint: Manifest, limits: Limits, units: tuple[Unit, ...]) -> EngineManifest:
        """The engine's, once its units are built."""
