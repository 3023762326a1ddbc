"""`rankforge convert`: from a model id or folder to one shard per rank, published whole or not at all."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from builders.assemble import existing, is_whole, source_files
from builders.checkpoint import Manifest, read_manifest
from builders.errors import ArtifactError
from builders.sources.opened import Opened
from builders.store import Store, disk
from builders.store.scratch import Scratch
from cluster.build_source import hashed, kept
from cluster.checkpoints import stored_bytes, understand, write_checkpoint
from cluster.convert_options import ConvertOptions
from cluster.output import copy_out, drafts_beside, in_the_way, place, real_place
from cluster.progress import Reporter
from cluster.store_place import open_store


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
    store = _store(options, output)
    random = options.load_format == "random"
    with drafts_beside(output) as scratch, scratch.folder() as unpacked:
        opened, manifest = understand(options.model_dir, options, unpacked, config_only=random)
        manifest = replace(manifest, random_seed=options.seed if random else None)
        reused = _reuse(output, opened, manifest, options)
        if reused is None and store is not None:
            manifest, reused = _by_way_of(store, options, scratch, opened, manifest, report)
        elif reused is None:
            with scratch.folder() as draft, disk.full_disk_refused(output.parent, "shards", draft):
                disk.require_free(draft, "the converted checkpoint", stored_bytes(manifest))
                manifest = write_checkpoint(draft, opened, manifest, workers=options.workers, report=report)
                if not place(draft, output, replace=options.overwrite):
                    reused = _same(output, opened, manifest)
        done = reused or manifest
    return ConvertResult(
        output_dir=options.output_dir,
        key=done.key,
        num_ranks=done.mapping.world_size,
        num_bytes=sum(rank.num_bytes for rank in done.ranks),
        seconds=round(time.monotonic() - began, 3),
        reused=reused is not None,
    )


def _store(options: ConvertOptions, output: Path) -> Store | None:
    """Where the checkpoint is kept too, if anywhere."""
    if options.store_dir is None and options.store_cache is None:
        return None
    return open_store(options.store_dir, options.store_cache, output)


def _by_way_of(
    store: Store,
    options: ConvertOptions,
    scratch: Scratch,
    opened: Opened,
    manifest: Manifest,
    report: Reporter,
) -> tuple[Manifest, Manifest | None]:
    """Find or keep the checkpoint in the store, and put it in its place from there."""
    output = real_place(options.output_dir)
    files = hashed(opened, options.model_dir, store)
    manifest = replace(manifest, source=replace(manifest.source, files=files))
    key, _ = kept(store, opened, manifest, options.workers, report)
    with store.open(key, verify=False) as entry, scratch.folder() as draft:
        manifest = read_manifest(entry.folder)
        with disk.full_disk_refused(output.parent, "shards", draft):
            copy_out(entry, {rank.name for rank in manifest.ranks}, draft)
            placed = place(draft, output, replace=options.overwrite)
    return manifest, None if placed else _same(output, opened, manifest)


def _reuse(output: Path, opened: Opened, manifest: Manifest, options: ConvertOptions) -> Manifest | None:
    """The checkpoint that is there, when it is the very one that would be made."""
    found = existing(output)
    if found is None:
        return None
    files = source_files(opened, found.source.files)
    wanted = replace(manifest, source=replace(manifest.source, files=files))
    # Who asks to overwrite may have found it damaged.
    if found.key == wanted.key and is_whole(output, found, opened, verify=options.overwrite):
        return found
    if options.overwrite:
        return None
    what = "is damaged" if found.key == wanted.key else "was made from other inputs"
    raise ArtifactError(f"{output}: holds a checkpoint that {what}; add --overwrite or choose another folder")


def _same(output: Path, opened: Opened, manifest: Manifest) -> Manifest:
    """What another conversion put there meanwhile, if it is what this one made."""
    found = existing(output)
    if found is None or found.key != manifest.key or not is_whole(output, found, opened):
        raise in_the_way(output)
    return found
