"""Making a checkpoint from a model: what `rankforge convert` and `rankforge build` do alike."""

from __future__ import annotations

from collections.abc import Mapping as PyMapping
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import torch

from actors.convert_worker import RankJob, Shelved, convert_ranks, written
from actors.shared_store import SharedStore
from builders.assemble import assemble, check_unchanged, identities, source_files, weight_files
from builders.checkpoint import DtypeName, Manifest, Provenance
from builders.convert import ConvertPlan, rank_elements
from builders.errors import ArtifactError, LayoutError, SourceError
from builders.keys import Recipe
from builders.mapping import Mapping, RankShape, check_mapping, rank_shape
from builders.sources.opened import Opened, open_source
from builders.sources.pieces import locate, typical_part
from builders.spec import ModelSpec
from builders.store import Entry, Store
from builders.tensor_file import Written
from cluster.convert_options import CheckpointOptions, LayoutOptions
from cluster.hub import fetch
from cluster.jobs import CONVERT, Crew


def understand(
    model: str, options: CheckpointOptions, unpacked: Path, *, config_only: bool
) -> tuple[Opened, Manifest]:
    """Fetch and open a model; the manifest has everything but the hashes, which take reading."""
    fetched = fetch(model, revision=options.revision, offline=options.offline, config_only=config_only)
    before = identities(fetched.path)
    opened = open_source(
        fetched.path, scratch=unpacked, ignored=options.ignore_config_field, config_only=config_only
    )
    opened = replace(opened, spec=_with_overrides(opened.spec, options), before=before)
    mapping = mapping_of(options, opened.spec)
    if opened.layout and not options.chosen(LayoutOptions):
        mapping = opened.layout
    check_mapping(opened.spec, mapping)
    manifest = Manifest(
        spec=opened.spec,
        mapping=mapping,
        dtype=_dtype(opened, options, config_only=config_only),
        source=Provenance(model=model, revision=fetched.revision),
    )
    return opened, manifest


def _with_overrides(spec: ModelSpec, options: CheckpointOptions) -> ModelSpec:
    if options.moe_normalization_mode is None:
        return spec
    if spec.moe is None:
        raise LayoutError(
            f"--moe_normalization_mode={options.moe_normalization_mode}: {spec.family} has no experts"
        )
    return replace(spec, moe=replace(spec.moe, renormalize=options.moe_normalization_mode == 1))


def mapping_of(options: CheckpointOptions, spec: ModelSpec) -> Mapping:
    """The layout that the options ask for."""
    split = ("vocab", "hidden")[options.embedding_sharding_dim] if options.use_parallel_embedding else "none"
    return Mapping(
        tp_size=options.tp_size,
        pp_size=options.pp_size,
        ep_size=_ep_size(options, spec),
        embedding_split=cast(Any, split),
    )


def _ep_size(options: CheckpointOptions, spec: ModelSpec) -> int:
    """`--moe_tp_mode` is the old way to say it: 1 spreads whole experts, 2 splits every expert."""
    by_mode = {None: options.ep_size or 1, 1: options.tp_size, 2: 1}[options.moe_tp_mode]
    if options.moe_tp_mode is not None and spec.moe is None:
        raise LayoutError(f"--moe_tp_mode={options.moe_tp_mode}: {spec.family} has no experts")
    if options.ep_size not in (None, by_mode):
        raise LayoutError(
            f"--ep_size={options.ep_size} and --moe_tp_mode={options.moe_tp_mode}: "
            f"the mode means --ep_size {by_mode}; give one of them"
        )
    return by_mode


def _dtype(opened: Opened, options: CheckpointOptions, *, config_only: bool) -> DtypeName:
    if options.dtype != "auto":
        return options.dtype
    if config_only:
        return cast(DtypeName, opened.dtype or "float16")
    if not any(parts[0].dtype.is_floating_point for parts in opened.index.values()):
        raise SourceError(
            f"{opened.root}: none of its {len(opened.index)} tensors is floating point; "
            "fetch the original weights again"
        )
    most = typical_part(locate(opened.family, opened.spec, opened.index))
    name = str(most.dtype).removeprefix("torch.")
    if name not in get_args(DtypeName):
        raise SourceError(f"{most.file}: weights are {name}; choose --dtype {', '.join(get_args(DtypeName))}")
    return cast(DtypeName, name)


def write_checkpoint(draft: Path, opened: Opened, manifest: Manifest, *, crew: Crew) -> Manifest:
    """Write the manifest's rank files while the sources are hashed, then what goes with them."""
    with ThreadPoolExecutor(1) as background:
        hashes = background.submit(source_files, opened, manifest.source.files)
        jobs = _jobs(opened, manifest, dict.fromkeys(manifest.stored_ranks, draft))
        ranks = convert_all(jobs, manifest, crew)
        source = replace(manifest.source, files=hashes.result())
    check_unchanged(opened)
    manifest = replace(manifest, source=source, ranks=tuple(ranks))
    assemble(draft, manifest, opened)
    return manifest


def shelve_ranks(opened: Opened, manifest: Manifest, *, crew: Crew, store: Store) -> tuple[Manifest, bool]:
    """See that the store has every rank's file, each an entry; whether any had to be made.

    The sources are hashed already, as an entry's key is made of them.
    """
    shared = SharedStore.of(store)
    recipes = {rank: rank_recipe(manifest, rank) for rank in manifest.stored_ranks}
    keys = [recipe.key for recipe in recipes.values()]
    here = store.bring(keys)
    missing = [rank for rank, recipe in recipes.items() if recipe.key not in here]
    places = {rank: Shelved(store=shared, recipe=recipes[rank]) for rank in missing}
    convert_all(_jobs(opened, manifest, places), manifest, crew)
    if missing:
        store.bring(keys)
    ranks = tuple(written(_entry(store, recipe.key), rank) for rank, recipe in recipes.items())
    return replace(manifest, ranks=ranks), bool(missing)


def rank_recipe(manifest: Manifest, rank: int) -> Recipe:
    """Of one rank's file, whichever others are wanted beside it."""
    return Recipe("rank", {"checkpoint": replace(manifest, held=None).key, "rank": rank})


def _entry(store: Store, key: str) -> Entry:
    entry = store.find(key)
    if entry is None:
        raise ArtifactError(f"{store.root}: rank {key[:12]} was removed during the job; run again")
    return entry


def _jobs(opened: Opened, manifest: Manifest, places: PyMapping[int, Path | Shelved]) -> list[RankJob]:
    """One for every rank that has a place."""
    made_up = manifest.random_seed is not None
    plan = ConvertPlan(
        spec=manifest.spec,
        mapping=manifest.mapping,
        dtype=getattr(torch, manifest.dtype),
        located={} if made_up or not places else locate(opened.family, manifest.spec, opened.index),
        random_seed=manifest.random_seed,
    )
    sources = {} if made_up else weight_files(opened)
    return [RankJob(plan=plan, rank=rank, place=place, sources=sources) for rank, place in places.items()]


def convert_all(jobs: Sequence[RankJob], manifest: Manifest, crew: Crew) -> Sequence[Written]:
    """Have ranks converted, and progress shown."""
    if not jobs:
        return ()
    sizes = rank_sizes(manifest)
    label = f"convert {manifest.source.model}"
    ranks = [job.rank for job in jobs]
    names = [f"rank {rank}" for rank in ranks]
    with crew.phase(label, names, [sizes[rank] for rank in ranks], numbers=ranks) as phase:
        return convert_ranks(jobs, crew.executor(CONVERT), phase)


def stored_bytes(manifest: Manifest) -> int:
    """Of the rank files that the manifest asks for."""
    sizes = rank_sizes(manifest)
    return sum(sizes[rank] for rank in manifest.stored_ranks)


def rank_sizes(manifest: Manifest) -> list[int]:
    """Bytes of every rank's weights; ranks of equal shape are counted once."""
    element = torch.finfo(getattr(torch, manifest.dtype)).bits // 8
    by_shape: dict[RankShape, int] = {}
    sizes = []
    for rank in range(manifest.mapping.world_size):
        shape = rank_shape(manifest.spec, manifest.mapping, rank)
        shape = replace(shape, layers=range(len(shape.layers)))
        if shape not in by_shape:
            by_shape[shape] = element * rank_elements(manifest.spec, manifest.mapping, rank)
        sizes.append(by_shape[shape])
    return sizes
