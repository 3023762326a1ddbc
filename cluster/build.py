"""`rankforge build`: from a checkpoint to an engine; every program is built once and found again."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from actors.build_worker import WHOLE, build_units, unit_names
from actors.shared_store import SharedStore
from builders.config_file import format_of, to_json
from builders.engine_manifest import EngineManifest, Unit, read_engine, unit_folder
from builders.errors import ArtifactError
from builders.limits import Limits, check_limits
from builders.store import Pruned, Store, disk
from builders.tensor_file import Written
from builders.units import Plan, UnitOfWork
from cluster.build_kinds import check_options, kind_of, plan_of
from cluster.build_options import BuildOptions
from cluster.build_source import Source, source_of
from cluster.jobs import Crew, crew_of
from cluster.output import drafts_beside, link, place, real_place
from cluster.progress import Reporter
from cluster.store_place import open_store
from cluster.values import size_bytes


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
    converted: bool
    """A model was converted or made up first, and not found in the store."""
    seconds: Mapping[str, float]
    reused: bool
    store: Pruned | None = None
    """What --store_limit evicted and kept."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        store = asdict(self.store) if self.store else None
        return {**vars(self), "output_dir": str(self.output_dir), "store": store}

    def to_text(self) -> str:
        """One line, and one for the phases."""
        evicted = self._evicted()
        if self.reused:
            return f"{self.output_dir}: already there, key {self.key[:12]}{evicted}"
        phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        return (
            f"{self.output_dir}: {self.num_ranks} ranks share {self.num_programs} sets of programs, "
            f"{self.num_built} of {self.num_units} units built, key {self.key[:12]}\n{phases}{evicted}"
        )

    def _evicted(self) -> str:
        if self.store is None:
            return ""
        kept, freed = self.store.kept_bytes, self.store.freed_bytes
        return f"\nstore: {len(self.store.evicted)} entries of {freed:,} bytes evicted, {kept:,} bytes kept"


def limits_of(options: BuildOptions) -> Limits:
    """The limits among the options."""
    return Limits(**{name: getattr(options, name) for name in Limits.__dataclass_fields__})


def build(options: BuildOptions, report: Reporter) -> BuildResult:
    """Find or make the checkpoint, export, build what the store lacks, assemble, publish."""
    check_options(options)
    clock, limits = _Clock(), limits_of(options)
    bound = None if options.store_limit is None else size_bytes("--store_limit", options.store_limit)
    output = real_place(options.output_dir)
    store = open_store(options.store_dir, options.store_cache, output)
    with (
        crew_of(options, report, verb="build", output=output, store=store) as crew,
        source_of(options, store, crew) as source,
    ):
        clock.phase("convert")
        manifest, result = _build(options, limits, source, store, clock, crew)
        if bound is None:
            return result
        used = {*source.entries, *(unit.key for unit in manifest.every_unit)}
        return replace(result, store=store.prune(bound, keep=used))


def _build(
    options: BuildOptions, limits: Limits, source: Source, store: Store, clock: _Clock, crew: Crew
) -> tuple[EngineManifest, BuildResult]:
    output = real_place(options.output_dir)
    _refuse_foreign(output)
    check_limits(limits, source.manifest.spec)
    plan = plan_of(options, source, limits, crew)
    clock.phase("export")
    here = store.bring([unit.recipe.key for unit in plan.units])
    missing = [unit for unit in plan.units if unit.recipe.key not in here]
    if missing:
        label = f"build {options.output_dir}"
        with crew.phase(label, unit_names(missing), [WHOLE] * len(missing), "percent") as phase:
            build_units(missing, SharedStore.of(store), crew.executor(kind_of(options)), phase)
        store.bring([unit.recipe.key for unit in missing])
    clock.phase("build")

    units = tuple(_unit(store, unit.recipe.key) for unit in plan.units)
    manifest = plan.manifest(source.manifest, limits, units)
    reused = _is_there(output, manifest, options)
    if not reused:
        with (
            drafts_beside(output) as scratch,
            scratch.folder() as draft,
            disk.full_disk_refused(output.parent, "the engine", draft),
        ):
            _assemble(draft, manifest, source.folder, store, holds_weights=plan.holds_weights)
            if not place(draft, output, replace=options.overwrite):
                reused = _is_there(output, manifest, options)
    clock.phase("publish")
    return manifest, _result(options, manifest, plan, source, clock, missing, reused)


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
    if disk.holds_nothing(output):
        return False
    _refuse_foreign(output)
    if read_engine(output).key == manifest.key:
        return True
    if not options.overwrite:
        raise ArtifactError(f"{output}: holds another engine; add --overwrite or choose another folder")
    return False


def _refuse_foreign(output: Path) -> None:
    """Whatever is there and is no engine stays as it is."""
    if not disk.holds_nothing(output) and format_of(output) != EngineManifest.format.name:
        raise ArtifactError(f"{output}: exists and is not an engine of ours; choose or remove it")


def _assemble(
    draft: Path, manifest: EngineManifest, source: Path, store: Store, *, holds_weights: bool
) -> None:
    """Programs, weights unless they are in them, tokenizer, generation settings, and the manifest last."""
    for unit in manifest.every_unit:
        with store.open(unit.key) as entry:
            folder = unit_folder(draft, unit)
            folder.mkdir(parents=True)
            for written in unit.files:
                link(entry.path(written.name), folder / written.name)
    for weights in () if holds_weights else manifest.checkpoint.ranks:
        link((source / weights.name).resolve(), draft / weights.name)
    if (source / "tokenizer").is_dir():
        shutil.copytree(source / "tokenizer", draft / "tokenizer", copy_function=shutil.copyfile)
    if (source / "generation_config.json").is_file():
        shutil.copyfile(source / "generation_config.json", draft / "generation_config.json")
    (draft / "config.json").write_text(json.dumps(to_json(manifest), indent=2) + "\n")
    disk.sync_folders(draft)


def _result(
    options: BuildOptions,
    manifest: EngineManifest,
    plan: Plan,
    source: Source,
    clock: _Clock,
    missing: Sequence[UnitOfWork],
    reused: bool,
) -> BuildResult:
    return BuildResult(
        output_dir=options.output_dir,
        key=manifest.key,
        num_ranks=sum(programs is not None for programs in manifest.ranks),
        num_programs=plan.num_programs,
        num_units=len(plan.units),
        num_built=len(missing),
        program_bytes=sum(file.num_bytes for unit in manifest.every_unit for file in unit.files),
        converted=source.converted,
        seconds=clock.seconds,
        reused=reused,
    )
