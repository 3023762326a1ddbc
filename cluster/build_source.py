"""Where the checkpoint of a build comes from: one that is there, a model to convert, or a configuration."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping as PyMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import builders
from builders.assemble import assemble, check_unchanged
from builders.checkpoint import Manifest, check_file, read_manifest
from builders.errors import ArtifactError, UserError
from builders.keys import Recipe
from builders.mapping import Mapping as RankMapping
from builders.sources.opened import Opened
from builders.store import Entry, Store, disk
from builders.store.scratch import Scratch
from cluster.build_options import BuildOptions
from cluster.checkpoints import rank_recipe, rank_sizes, shelve_ranks, stored_bytes, understand
from cluster.convert_options import CheckpointOptions
from cluster.jobs import Crew
from cluster.output import drafts_beside, real_place
from cluster.source_hashes import hashed
from cluster.values import rank_numbers

SOURCES = ("checkpoint_dir", "model_dir", "model_config")


@dataclass(frozen=True, kw_only=True)
class Source:
    """What an engine of any kind is built from."""

    manifest: Manifest
    """Its rank files are those that the engine is to hold; none, where no weights are wanted."""
    folder: Path
    """Where those files lie, with tokenizer/ and generation_config.json where the model has them."""
    entries: frozenset[str] = frozenset()
    """The keys under which the store keeps it."""
    ranks: PyMapping[int, str] = field(default_factory=dict)
    """Those of its ranks' files."""
    converted: bool = False
    """It was made now, and not found."""


@contextmanager
def source_of(options: BuildOptions, store: Store, crew: Crew) -> Iterator[Source]:
    """The one source that was given; what the store keeps of it stays there until the block ends."""
    check_source(options)
    if options.checkpoint_dir is not None:
        yield _found(options, options.checkpoint_dir)
        return
    seen_by_all = Scratch(store.root / "scratch")
    with (
        drafts_beside(real_place(options.output_dir)) as scratch,
        (seen_by_all if crew.on_cluster else scratch).folder() as unpacked,
    ):
        opened, manifest = _understood(options, unpacked, store)
        rest, ranks, converted = _kept(store, opened, manifest, crew)
    keys = frozenset((rest, *ranks.values()))
    with ExitStack() as held, seen_by_all.folder() as view:
        for key in keys:
            _show(held.enter_context(store.open(key, verify=False)), view)
        manifest = read_manifest(view)
        yield Source(manifest=manifest, folder=view, entries=keys, ranks=ranks, converted=converted)


def _show(entry: Entry, view: Path) -> None:
    """All that an entry holds, under one roof with others."""
    for name in entry.manifest.files:
        (view / name).parent.mkdir(exist_ok=True)
        (view / name).symlink_to(entry.path(name).resolve())


def check_source(options: BuildOptions) -> None:
    """Exactly one source, and no option that belongs to another."""
    chosen = [f"--{name}" for name in SOURCES if getattr(options, name) is not None]
    if len(chosen) != 1:
        given = f"{' and '.join(chosen)} were given" if chosen else "none was given"
        raise UserError(f"give one of {', '.join(f'--{name}' for name in SOURCES)}; {given}")
    for name in options.chosen(CheckpointOptions):
        if why := _foreign(name, chosen[0]):
            raise UserError(f"--{name}: {why}")


def _foreign(name: str, source: str) -> str | None:
    """Why an option of a conversion has nothing to say to a source."""
    if source == "--checkpoint_dir":
        return "the checkpoint of --checkpoint_dir is converted already; use it with --model_dir"
    if source == "--model_dir" and name == "seed":
        return "of random weights; use it with --model_config"
    if source == "--model_config" and name in ("revision", "offline"):
        return "a --model_config is a file and is not fetched"
    return None


def wanted_ranks(options: BuildOptions, mapping: RankMapping) -> tuple[int, ...] | None:
    """The ranks to build; None is all."""
    if options.ranks is None:
        return None
    return rank_numbers("--ranks", options.ranks, mapping.world_size)


def _found(options: BuildOptions, folder: Path) -> Source:
    """A checkpoint as it is, or a part of it."""
    manifest = read_manifest(folder)
    for written in manifest.ranks:
        check_file(folder / written.name, written, verify=False)
    ranks = wanted_ranks(options, manifest.mapping)
    if options.no_weights:
        manifest = manifest.only(())
    elif ranks is not None and manifest.ranks:
        manifest = manifest.only(ranks)
    return Source(manifest=manifest, folder=folder)


def _understood(options: BuildOptions, unpacked: Path, store: Store) -> tuple[Opened, Manifest]:
    """What to make: the sources are hashed, so that it can be found again by its content."""
    made_up = options.model_config is not None
    model = options.model_dir or str(configuration(options.model_config or ""))
    opened, manifest = understand(model, options, unpacked, config_only=made_up or options.no_weights)
    held = () if options.no_weights else wanted_ranks(options, manifest.mapping)
    if made_up and held is None:
        held = tuple(range(manifest.mapping.world_size))
    manifest = replace(
        manifest,
        held=held,
        random_seed=options.seed if made_up and held else None,
        source=hashed(opened, manifest.source, store),
    )
    return opened, manifest


def configuration(name: str) -> Path:
    """A configuration file, or one that ships with rankforge by its name."""
    shipped = {file.stem: file for file in Path(builders.__file__).parent.glob("configs/*.json")}
    if Path(name).is_file() or name not in shipped:
        if not Path(name).is_file():
            raise UserError(
                f"--model_config={name}: no such file; shipped by name: {', '.join(sorted(shipped))}"
            )
        return Path(name)
    return shipped[name]


def _kept(store: Store, opened: Opened, manifest: Manifest, crew: Crew) -> tuple[str, dict[int, str], bool]:
    """Keys of the store's entries: of all but the ranks, and of every rank; and whether any was made."""
    ranks = {rank: rank_recipe(manifest, rank).key for rank in manifest.stored_ranks}
    if not set(ranks.values()) <= store.known_keys():
        _require_free(store.root, manifest)
    manifest, converted = shelve_ranks(opened, manifest, crew=crew, store=store)
    rest = Recipe("checkpoint", {"checkpoint": manifest.key, "ranks": "apart"})
    made: list[Path] = []

    def make(draft: Path) -> None:
        check_unchanged(opened)
        assemble(draft, manifest, opened)
        made.append(draft)

    store.get_or_build(rest, make)
    return rest.key, ranks, converted if ranks else bool(made)


def _require_free(folder: Path, manifest: Manifest) -> None:
    """Refuse weights that will not fit, before anything is written."""
    needed = stored_bytes(manifest)
    while not folder.is_dir():
        folder = folder.parent
    free = disk.free_bytes(folder)
    if needed <= free:
        return
    ranks = manifest.stored_ranks
    smallest = f"; rank {ranks[0]} alone needs {rank_sizes(manifest)[ranks[0]]:,}" if len(ranks) > 1 else ""
    raise ArtifactError(
        f"{folder}: the weights of {len(ranks)} ranks need {needed:,} bytes and {free:,} are free{smallest}; "
        "build some with --ranks, split them over more with --tp_size or --pp_size, "
        "or build the programs alone with --no_weights, TensorRT plans with --strip_plan as well"
    )
