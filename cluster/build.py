"""`rankforge build`: from a checkpoint to an engine; every program is built once and found again."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.build_worker import WHOLE, build_units
from builders.checkpoint import check_file, read_manifest
from builders.config_file import format_of, to_json
from builders.engine_manifest import EngineManifest, Unit, read_engine, unit_folder
from builders.errors import ArtifactError
from builders.limits import Limits, check_limits
from builders.store import Store, disk
from builders.tensor_file import Written
from builders.units import Plan
from cluster.build_kinds import check_options, plan_of
from cluster.build_options import BuildOptions
from cluster.output import drafts_beside, place, real_place
from cluster.progress import Reporter


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What a build did, phase by phase."""

    output_dir: Path
    key: str
    num_ranks: int
    num_programs: int
    num_units: int
    num_built: int
    """Units that were not in the store."""
    program_bytes: int
    seconds: Mapping[str, float]
    reused: bool

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "output_dir": str(self.output_dir)}

    def to_text(self) -> str:
        """One line, and one for the phases."""
        if self.reused:
            return f"{self.output_dir}: already there, key {self.key[:12]}"
        phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        return (
            f"{self.output_dir}: {self.num_ranks} ranks share {self.num_programs} sets of programs, "
            f"{self.num_built} of {self.num_units} units built, key {self.key[:12]}\n{phases}"
        )


def limits_of(options: BuildOptions) -> Limits:
    """The limits among the options."""
    return Limits(**{name: getattr(options, name) for name in Limits.__dataclass_fields__})


def build(options: BuildOptions, report: Reporter) -> BuildResult:
    """Export, build what the store lacks, assemble, publish."""
    check_options(options)
    clock = _Clock()
    checkpoint = read_manifest(options.checkpoint_dir)
    for written in checkpoint.ranks:
        check_file(options.checkpoint_dir / written.name, written, verify=False)
    limits = limits_of(options)
    check_limits(limits, checkpoint.spec)
    plan = plan_of(options, checkpoint, limits)
    clock.phase("export")

    output = real_place(options.output_dir)
    store = Store(options.store_dir or output.parent / ".rankforge-store")
    report.start([WHOLE] * len(plan.units), f"build {options.output_dir}", "percent")
    before = {entry.key for entry in store.listing()}
    try:
        build_units(plan.units, store.root, workers=options.workers, advance=report.advance)
    finally:
        report.finish()
    clock.phase("build")

    units = tuple(_unit(store, unit.recipe.key) for unit in plan.units)
    manifest = plan.manifest(checkpoint, limits, units)
    reused = _is_there(output, manifest, options)
    if not reused:
        with drafts_beside(output) as scratch, scratch.folder() as draft:
            _assemble(draft, manifest, options.checkpoint_dir, store, holds_weights=plan.holds_weights)
            place(draft, output, replace=options.overwrite)
    clock.phase("publish")
    return _result(options, manifest, plan, clock, before, reused)


class _Clock:
    """Seconds of the phases since the last one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._at = time.monotonic()

    def phase(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name], self._at = round(now - self._at, 3), now


def _unit(store: Store, key: str) -> Unit:
    entry = store.find(key)
    if entry is None:
        raise ArtifactError(f"{store.root}: unit {key[:12]} was removed during the build; build again")
    files = entry.manifest.files.items()
    return Unit(
        key=key,
        files=tuple(
            Written(name=name, num_bytes=file.size_bytes, sha256=file.sha256) for name, file in files
        ),
    )


def _is_there(output: Path, manifest: EngineManifest, options: BuildOptions) -> bool:
    """Whether the output holds this very engine; anything else in the way is refused."""
    if not output.exists() or not any(output.iterdir()):
        return False
    if format_of(output) != manifest.format.name:
        raise ArtifactError(f"{output}: exists and is not an engine of ours; choose or remove it")
    if read_engine(output).key == manifest.key:
        return True
    if not options.overwrite:
        raise ArtifactError(f"{output}: holds another engine; add --overwrite or choose another folder")
    return False


def _assemble(
    draft: Path, manifest: EngineManifest, checkpoint_dir: Path, store: Store, *, holds_weights: bool
) -> None:
    """Programs, weights unless they are in them, tokenizer, generation settings, and the manifest last."""
    for unit in manifest.units:
        with store.open(unit.key) as entry:
            folder = unit_folder(draft, unit)
            folder.mkdir(parents=True)
            for written in unit.files:
                _link(entry.path(written.name), folder / written.name)
    weights = {written.name for written in manifest.checkpoint.ranks} if holds_weights else set()
    for item in checkpoint_dir.iterdir():
        if item.is_dir():
            shutil.copytree(item, draft / item.name)
        elif item.name not in weights | {"config.json"}:
            _link(item, draft / item.name)
    (draft / "config.json").write_text(json.dumps(to_json(manifest), indent=2) + "\n")
    disk.sync_folders(draft)


def _link(source: Path, target: Path) -> None:
    """Files that nobody writes again are shared where the file system can, copied where it cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _result(
    options: BuildOptions,
    manifest: EngineManifest,
    plan: Plan,
    clock: _Clock,
    before: set[str],
    reused: bool,
) -> BuildResult:
    return BuildResult(
        output_dir=options.output_dir,
        key=manifest.key,
        num_ranks=len(manifest.ranks),
        num_programs=plan.num_programs,
        num_units=len(plan.units),
        num_built=sum(unit.key not in before for unit in manifest.units),
        program_bytes=sum(file.num_bytes for unit in manifest.units for file in unit.files),
        seconds=clock.seconds,
        reused=reused,
    )
