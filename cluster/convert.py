"""`rankforge convert`: from a model id or folder to one shard per rank, published whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import torch

from actors.convert_worker import run_ranks
from builders.assemble import assemble, check_unchanged, existing, is_whole, source_files
from builders.checkpoint import DtypeName, Manifest, Provenance
from builders.convert import ConvertPlan, rank_elements
from builders.errors import ArtifactError, LayoutError, SourceError
from builders.mapping import Mapping, check_mapping
from builders.sources.opened import Opened, open_source
from builders.sources.pieces import locate, typical_part
from builders.spec import ModelSpec
from builders.store import disk
from builders.tensor_file import Written
from cluster.convert_options import ConvertOptions
from cluster.hub import Fetched, fetch
from cluster.output import drafts_beside, place, real_place
from cluster.progress import Reporter


@dataclass(frozen=True, kw_only=True)
class ConvertResult:
    """What a conversion did."""

    output_dir: Path
    key: str
    num_ranks: int
    num_bytes: int
    """Of all rank files together."""
    seconds: float
    reused: bool
    """The output was there already, with the same content key."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "output_dir": str(self.output_dir)}

    def to_text(self) -> str:
        """One line."""
        if self.reused:
            return f"{self.output_dir}: already there, key {self.key[:12]}"
        size = f"{self.num_bytes / 1e6:.1f} MB in " if self.num_bytes else "random weights for "
        return f"{self.output_dir}: {size}{self.num_ranks} ranks, {self.seconds:.1f} s, key {self.key[:12]}"


def convert(options: ConvertOptions, report: Reporter) -> ConvertResult:
    """Fetch, understand, split, publish."""
    began, output = time.monotonic(), real_place(options.output_dir)
    fetched = fetch(
        options.model_dir,
        revision=options.revision,
        offline=options.offline,
        config_only=options.load_format == "random",
    )
    with drafts_beside(output) as scratch, scratch.folder() as unpacked:
        opened = _open(fetched, options, unpacked)
        manifest = _manifest(opened, fetched, options)
        reused = _reuse(output, opened, manifest, options)
        if reused is None:
            with scratch.folder() as draft, disk.full_disk_refused(output.parent, "shards", draft):
                manifest = _fill(draft, opened, manifest, options, report)
                place(draft, output, replace=options.overwrite)
        done = reused or manifest
    return ConvertResult(
        output_dir=options.output_dir,
        key=done.key,
        num_ranks=done.mapping.world_size,
        num_bytes=sum(rank.num_bytes for rank in done.ranks),
        seconds=round(time.monotonic() - began, 3),
        reused=reused is not None,
    )


def _open(fetched: Fetched, options: ConvertOptions, unpacked: Path) -> Opened:
    opened = open_source(
        fetched.path,
        scratch=unpacked,
        ignored=options.ignore_config_field,
        config_only=options.load_format == "random",
    )
    return replace(opened, spec=_with_overrides(opened.spec, options))


def _with_overrides(spec: ModelSpec, options: ConvertOptions) -> ModelSpec:
    if options.moe_normalization_mode is None:
        return spec
    if spec.moe is None:
        raise LayoutError(
            f"--moe_normalization_mode={options.moe_normalization_mode}: {spec.family} has no experts"
        )
    return replace(spec, moe=replace(spec.moe, renormalize=options.moe_normalization_mode == 1))


def _manifest(opened: Opened, fetched: Fetched, options: ConvertOptions) -> Manifest:
    """Everything but the hashes, which take reading."""
    mapping = mapping_of(options, opened.spec)
    check_mapping(opened.spec, mapping)
    return Manifest(
        spec=opened.spec,
        mapping=mapping,
        dtype=_dtype(opened, options),
        source=Provenance(model=options.model_dir, revision=fetched.revision),
        random_seed=options.seed if options.load_format == "random" else None,
    )


def mapping_of(options: ConvertOptions, spec: ModelSpec) -> Mapping:
    """The layout that the options ask for."""
    split = ("vocab", "hidden")[options.embedding_sharding_dim] if options.use_parallel_embedding else "none"
    return Mapping(
        tp_size=options.tp_size,
        pp_size=options.pp_size,
        ep_size=_ep_size(options, spec),
        embedding_split=cast(Any, split),
    )


def _ep_size(options: ConvertOptions, spec: ModelSpec) -> int:
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


def _dtype(opened: Opened, options: ConvertOptions) -> DtypeName:
    if options.dtype != "auto":
        return options.dtype
    if options.load_format == "random":
        return cast(DtypeName, opened.dtype or "float16")
    if not any(parts[0].dtype.is_floating_point for parts in opened.index.values()):
        raise SourceError(
            f"{options.model_dir}: none of its {len(opened.index)} tensors is floating point; "
            "fetch the original weights again"
        )
    most = typical_part(locate(opened.family, opened.spec, opened.index))
    name = str(most.dtype).removeprefix("torch.")
    if name not in get_args(DtypeName):
        raise SourceError(f"{most.file}: weights are {name}; choose --dtype {', '.join(get_args(DtypeName))}")
    return cast(DtypeName, name)


def _reuse(output: Path, opened: Opened, manifest: Manifest, options: ConvertOptions) -> Manifest | None:
    """The checkpoint that is there, when it is the very one that would be made."""
    found = existing(output)
    if found is None:
        return None
    files = source_files(opened, found.source.files)
    wanted = replace(manifest, source=replace(manifest.source, files=files))
    if found.key == wanted.key and is_whole(output, found, opened):
        return found
    if options.overwrite:
        return None
    what = "is damaged" if found.key == wanted.key else "was made from other inputs"
    raise ArtifactError(f"{output}: holds a checkpoint that {what}; add --overwrite or choose another folder")


def _fill(
    draft: Path, opened: Opened, manifest: Manifest, options: ConvertOptions, report: Reporter
) -> Manifest:
    """Write every rank file while the sources are hashed, then what goes with them."""
    with ThreadPoolExecutor(1) as background:
        hashes = background.submit(source_files, opened, {})
        ranks = () if manifest.random_seed is not None else _shards(draft, opened, manifest, options, report)
        source = replace(manifest.source, files=hashes.result())
    check_unchanged(opened, source.files)
    manifest = replace(manifest, source=source, ranks=tuple(ranks))
    assemble(draft, manifest, opened)
    return manifest


def _shards(
    draft: Path, opened: Opened, manifest: Manifest, options: ConvertOptions, report: Reporter
) -> Sequence[Written]:
    plan = ConvertPlan(
        spec=manifest.spec,
        mapping=manifest.mapping,
        dtype=getattr(torch, manifest.dtype),
        located=locate(opened.family, manifest.spec, opened.index),
    )
    sizes = rank_sizes(manifest)
    disk.require_free(draft, "the converted checkpoint", sum(sizes))
    report.start(sizes, f"convert {options.model_dir}")
    try:
        return run_ranks(plan, draft, workers=options.workers, advance=report.advance)
    finally:
        report.finish()


def rank_sizes(manifest: Manifest) -> list[int]:
    """Bytes of every rank's weights."""
    size = torch.finfo(getattr(torch, manifest.dtype)).bits // 8
    world = range(manifest.mapping.world_size)
    return [size * rank_elements(manifest.spec, manifest.mapping, rank) for rank in world]
