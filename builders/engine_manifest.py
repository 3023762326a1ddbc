"""The content of an engine's config.json: one manifest a kind of engine, behind one reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

from builders.checkpoint import Manifest
from builders.config_file import Format, format_of, kind_of, read_config
from builders.errors import ArtifactError
from builders.keys import content_key
from builders.limits import Limits
from builders.store import disk
from builders.tensor_file import Written


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One program or plan as it was built: a folder under `programs/`."""

    key: str
    """Of the program and of all else that decided its files."""
    files: tuple[Written, ...]


@dataclass(frozen=True, kw_only=True)
class EngineManifest:
    """What every kind of engine says of itself."""

    format: ClassVar[Format] = Format(
        name="rankforge-engine", version=1, remedy="make one with `rankforge build`"
    )

    kind: str
    target: str
    """What it runs on, as `--target` names it."""
    limits: Limits
    checkpoint: Manifest
    units: tuple[Unit, ...]
    ranks: tuple[int | None, ...]
    """For every rank, which of the kind's programs or plans it runs; None for a rank that was not built."""
    versions: Mapping[str, str]
    """Of the libraries that the units were built with."""

    @property
    def every_unit(self) -> tuple[Unit, ...]:
        """All that lie under `programs/`."""
        return self.units

    @property
    def key(self) -> str:
        """Equal for engines made of the same parts."""
        limits = {name: value for name, value in vars(self.limits).items() if value is not None}
        data = {**asdict(self), "limits": limits, "checkpoint": self.checkpoint.key}
        return content_key(format=[self.format.name, self.format.version], **data)


@dataclass(frozen=True, kw_only=True)
class RankPrograms:
    """Which units make up a rank, by number."""

    embed: int | None
    rotary: int | None
    blocks: tuple[int, ...]
    layers: tuple[int, ...]
    """For every layer, which of the blocks it is."""
    head: int | None


@dataclass(frozen=True, kw_only=True)
class TorchManifest(EngineManifest):
    """Programs that hold no weights, and the weights beside them; `ranks` chooses among the programs."""

    kind: Literal["torch"] = "torch"
    compiled: bool
    programs: tuple[RankPrograms, ...]
    kernels: tuple[Unit, ...] = ()
    """What a CUDA device executes: one unit for every place and number of rows that was chosen for."""
    processor: str | None = None
    """Whose instructions compiled programs use; None where none are compiled for the CPU."""
    timed_on: str | None = None
    """The device that the kernels were chosen on; None where the likeliest were taken."""

    @property
    def every_unit(self) -> tuple[Unit, ...]:
        return (*self.units, *self.kernels)


@dataclass(frozen=True, kw_only=True)
class TrtManifest(EngineManifest):
    """One TensorRT plan a rank; `ranks` chooses among the units."""

    kind: Literal["tensorrt"] = "tensorrt"
    library: Literal["tensorrt", "tensorrt_rtx"]
    stripped: bool
    """The plans hold no weights: they are given the checkpoint's, which lie beside them."""


KINDS: Mapping[str, type[TorchManifest] | type[TrtManifest]] = {
    "torch": TorchManifest,
    "tensorrt": TrtManifest,
}


def read_engine(folder: Path) -> TorchManifest | TrtManifest:
    """An engine's manifest, once it is known to be ours and of a kind that is known."""
    kind = kind_of(folder)
    if format_of(folder) == EngineManifest.format.name and kind not in KINDS:
        raise ArtifactError(
            f"{folder}: an engine of kind {kind!r}; the kinds known here are {', '.join(KINDS)}; "
            "use the rankforge that made it, or build it again"
        )
    manifest: TorchManifest | TrtManifest = read_config(KINDS.get(kind or "", TorchManifest), folder)
    return manifest


def held_program(folder: Path, manifest: EngineManifest, rank: int) -> int:
    """What a rank runs, by number, once it is known that the engine holds it."""
    number = manifest.ranks[rank] if 0 <= rank < len(manifest.ranks) else None
    if number is None:
        held = ", ".join(str(rank) for rank, found in enumerate(manifest.ranks) if found is not None)
        raise ArtifactError(
            f"{folder}: does not hold rank {rank} of {len(manifest.ranks)}, only {held}; "
            "build it with other --ranks, or without --ranks for all"
        )
    if manifest.checkpoint.held == ():
        raise ArtifactError(
            f"{folder}: holds programs only (--no_weights); build again from the checkpoint to link weights"
        )
    return number


def unit_folder(folder: Path, unit: Unit) -> Path:
    """Where a unit's files lie."""
    return folder / "programs" / unit.key[:16]


def check_unit(folder: Path, unit: Unit) -> None:
    """Refuse files that are not the ones that were built."""
    for written in unit.files:
        check_written(unit_folder(folder, unit) / written.name, written)


def check_written(file: Path, written: Written) -> None:
    """Refuse a file that is not the one that was built."""
    if not file.is_file() or disk.sha256(file) != written.sha256:
        raise ArtifactError(f"{file}: missing, or not the file that was built; build the engine again")


def unit_file(folder: Path, unit: Unit, name: str) -> Path:
    """One of a unit's files, once it is known to be the one that was built."""
    written = next((written for written in unit.files if written.name == name), None)
    if written is None:
        raise ArtifactError(f"{folder}: unit {unit.key[:12]} has no {name}; build the engine again")
    file = unit_folder(folder, unit) / name
    check_written(file, written)
    return file
