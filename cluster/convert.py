"""`rankforge convert`: from a model id or folder to one shard per rank, published whole or not at all."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from builders.assemble import assemble, check_unchanged, existing, is_whole, source_files
from builders.checkpoint import Manifest
from builders.errors import ArtifactError
from builders.sources.opened import Opened
from builders.store import Store, disk
from builders.store.scratch import Scratch
from cluster.checkpoints import rank_recipe, shelve_ranks, stored_bytes, understand, write_checkpoint
from cluster.convert_options import ConvertOptions
from cluster.jobs import Crew, crew_of
from cluster.output import drafts_beside, in_the_way, link, place, real_place
from cluster.progress import Reporter
from cluster.ray_cluster import cluster_of
from cluster.source_hashes import hashed
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
    with (
        crew_of(options, report, verb="convert", output=output, store=store) as crew,
        drafts_beside(output) as scratch,
        _unpacked(crew, store, scratch) as unpacked,
    ):
        opened, manifest = understand(options.model_dir, options, unpacked, config_only=random)
        manifest = replace(manifest, random_seed=options.seed if random else None)
        reused = _reuse(output, opened, manifest, options)
        if reused is None:
            with scratch.folder() as draft, disk.full_disk_refused(output.parent, "shards", draft):
                disk.require_free(draft, "the converted checkpoint", stored_bytes(manifest))
                manifest = _write(draft, opened, manifest, crew, store)
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
    """Where one was named, or workers of a cluster need one."""
    if options.store_dir is None and options.store_cache is None and cluster_of(options.address) is None:
        return None
    return open_store(options.store_dir, options.store_cache, output)


def _unpacked(crew: Crew, store: Store | None, scratch: Scratch) -> AbstractContextManager[Path]:
    """Where an archive is unpacked: workers must see it."""
    return (Scratch(store.root / "scratch") if store and crew.on_cluster else scratch).folder()


def _write(draft: Path, opened: Opened, manifest: Manifest, crew: Crew, store: Store | None) -> Manifest:
    """Into the draft at once, or by way of a store, where ranks that are done stay done."""
    if store is None:
        return write_checkpoint(draft, opened, manifest, crew=crew)
    manifest = replace(manifest, source=hashed(opened, manifest.source, store))
    manifest, _ = shelve_ranks(opened, manifest, crew=crew, store=store)
    for rank, file in zip(manifest.stored_ranks, manifest.ranks, strict=True):
        with store.open(rank_recipe(manifest, rank).key, verify=False) as entry:
            link(entry.path(file.name), draft / file.name)
    check_unchanged(opened)
    assemble(draft, manifest, opened)
    return manifest


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
