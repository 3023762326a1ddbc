"""Making a checkpoint from a model: what `rankforge convert` and `rankforge build` do alike."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import torch

from actors.convert_worker import run_ranks
from builders.assemble import assemble, check_unchanged, identities, source_files
from builders.checkpoint import DtypeName, Manifest, Provenance
from builders.convert import ConvertPlan, rank_elements
from builders.errors import LayoutError, SourceError
from builders.mapping import Mapping, RankShape, check_mapping, rank_shape
from builders.sources.opened import Opened, open_source
from builders.sources.pieces import locate
from builders.spec import ModelSpec
from builders.tensor_file import Written
from cluster.convert_options import CheckpointOptions, LayoutOptions
from cluster.hub import fetch
from cluster.progress import Reporter


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
    first = next((parts[0] for parts in opened.index.values() if parts[0].dtype.is_floating_point), None)
    if first is None:
        raise SourceError(
            f"{opened.root}: none of its {len(opened.index)} tensors is floating point; "
            "fetch the original weights again"
        )
    name = str(first.dtype).removeprefix("torch.")
    if name not in get_args(DtypeName):
        raise SourceError(
            f"{first.file}: weights are {name}; choose --dtype {', '.join(get_args(DtypeName))}"
        )
    return cast(DtypeName, name)


def write_checkpoint(
    draft: Path, opened: Opened, manifest: Manifest, *, workers: int, report: Reporter
) -> Manifest:
    """Write the manifest's rank files while the sources are hashed, then what goes with them."""
    with ThreadPoolExecutor(1) as background:
        hashes = background.submit(source_files, opened, manifest.source.files)
        ranks = _write_ranks(draft, opened, manifest, workers, report) if manifest.stored_ranks else ()
        source = replace(manifest.source, files=hashes.result())
    check_unchanged(opened)
    manifest = replace(manifest, source=source, ranks=tuple(ranks))
    assemble(draft, manifest, opened)
    return manifest


def _write_ranks(
    draft: Path, opened: Opened, manifest: Manifest, workers: int, report: Reporter
) -> Sequence[Written]:
    made_up = manifest.random_seed is not None
    plan = ConvertPlan(
        spec=manifest.spec,
        mapping=manifest.mapping,
        dtype=getattr(torch, manifest.dtype),
        located={} if made_up else locate(opened.family, manifest.spec, opened.index),
        random_seed=manifest.random_seed,
    )
    ranks, sizes = manifest.stored_ranks, rank_sizes(manifest)
    bars = {rank: number for number, rank in enumerate(ranks)}

    def advance(rank: int, amount: int) -> None:
        report.advance(bars[rank], amount)

    report.start([sizes[rank] for rank in ranks], f"convert {manifest.source.model}")
    try:
        return run_ranks(plan, draft, workers=workers, advance=advance, only=ranks)
    finally:
        report.finish()


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
