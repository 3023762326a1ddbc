"""A converted checkpoint: config.json, one safetensors file per rank, tokenizer and generation settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from builders.config_file import Format, read_config, to_json
from builders.constants import rank_constants, set_constants
from builders.convert import ConvertPlan, rank_file_name, target_chunks
from builders.decoder import Decoder, empty_decoder
from builders.errors import ArtifactError
from builders.keys import content_key
from builders.mapping import Mapping as RankMapping
from builders.mapping import check_mapping, rank_shape
from builders.shard import targets
from builders.spec import ModelSpec
from builders.store import disk
from builders.tensor_file import Written

DtypeName = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file that the checkpoint was made from. All but the hash only saves hashing it again."""

    sha256: str
    num_bytes: int
    inode: int
    changed_ns: int
    """When the file or anything about it was last changed, as the file system says."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a checkpoint came from."""

    model: str
    """The folder, file or Hugging Face id that was given."""
    revision: str | None = None
    """The commit that a Hugging Face id was pinned to."""
    files: Mapping[str, SourceFile] = field(default_factory=dict)
    """Weights, tokenizer and generation settings."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of a checkpoint's config.json."""

    format: ClassVar[Format] = Format(
        name="rankforge-checkpoint", version=1, remedy="make one with `rankforge convert`"
    )

    spec: ModelSpec
    mapping: RankMapping
    dtype: DtypeName
    source: Provenance
    random_seed: int | None = None
    """Weights are made up from this seed: when they are loaded, unless there are rank files."""
    held: tuple[int, ...] | None = None
    """The ranks whose files are here; None is all of them, or none where weights are made up on loading."""
    ranks: tuple[Written, ...] = ()

    @property
    def key(self) -> str:
        """The content key: equal for equal inputs, wherever they came from and whoever converted them."""
        return content_key(
            format=[self.format.name, self.format.version],
            spec=self.spec.to_json(),
            mapping=asdict(self.mapping),
            dtype=self.dtype,
            files={name: file.sha256 for name, file in self.source.files.items()},
            random_seed=self.random_seed,
            **({} if self.held is None else {"held": self.held}),
        )

    @property
    def stored_ranks(self) -> tuple[int, ...]:
        """The ranks that have a file."""
        if self.held is not None:
            return self.held
        return tuple(range(self.mapping.world_size)) if self.random_seed is None else ()

    def rank_file(self, rank: int) -> Written:
        """What is known of a rank's file, or why there is none."""
        found = dict(zip(self.stored_ranks, self.ranks, strict=True))
        if rank in found:
            return found[rank]
        if not found:
            raise ArtifactError(f"rank {rank}: there are no weights here, only programs; build with weights")
        held = ", ".join(map(str, found))
        raise ArtifactError(f"rank {rank}: not here, only ranks {held}; make it with --ranks {rank}")

    def only(self, ranks: Iterable[int]) -> Manifest:
        """The same with the files of these ranks alone."""
        held = tuple(ranks)
        return replace(self, held=held, ranks=tuple(self.rank_file(rank) for rank in held))

    def to_json(self) -> dict[str, Any]:
        """The content of config.json."""
        return to_json(self)


def read_manifest(folder: Path) -> Manifest:
    """A checkpoint's manifest, once it is known to be ours and whole."""
    manifest = read_config(Manifest, folder)
    check_mapping(manifest.spec, manifest.mapping)
    expected = [rank_file_name(rank) for rank in manifest.stored_ranks]
    if [file.name for file in manifest.ranks] != expected:
        raise ArtifactError(f"{folder}: its rank files must be {', '.join(expected)}; convert again")
    return manifest


def load_rank(folder: Path, rank: int, *, verify: bool = False) -> Decoder:
    """One rank's decoder with its weights, mapped from its file where there is one."""
    manifest = read_manifest(folder)
    decoder = empty_decoder(manifest.spec, manifest.mapping, rank)
    decoder.load_state_dict(rank_tensors(folder, manifest, rank, verify=verify), assign=True)
    set_constants(decoder, rank_constants(manifest.spec, manifest.mapping, rank))
    return decoder


def rank_tensors(
    folder: Path,
    manifest: Manifest,
    rank: int,
    *,
    verify: bool = False,
    read: Callable[[Path], dict[str, Tensor]] = load_file,
) -> dict[str, Tensor]:
    """A rank's weights by name, mapped unless `read` differs; a tied head is a view of the embedding."""
    if manifest.random_seed is None or manifest.held is not None:
        written = manifest.rank_file(rank)
        check_file(folder / written.name, written, verify=verify)
        tensors = read(folder / written.name)
    else:
        tensors = _made_up(manifest, rank)
    place, shape = manifest.mapping.place(rank), rank_shape(manifest.spec, manifest.mapping, rank)
    if shape.last and "head.weight" not in tensors:
        first = 0 if manifest.mapping.embedding_split == "vocab" else place.tp * shape.vocab_size
        tensors["head.weight"] = tensors["embed.weight"][first : first + shape.vocab_size]
    return tensors


def check_file(file: Path, written: Written, *, verify: bool) -> None:
    """Refuse a rank file that is missing, cut short or (when verified) changed."""
    if not file.is_file():
        raise ArtifactError(f"{file}: missing; convert again")
    if (size := file.stat().st_size) != written.num_bytes:
        raise ArtifactError(f"{file}: has {size} bytes, config.json says {written.num_bytes}; convert again")
    if verify and disk.sha256(file) != written.sha256:
        raise ArtifactError(f"{file}: its content is not what config.json says; convert again")


def _made_up(manifest: Manifest, rank: int) -> dict[str, Tensor]:
    plan = ConvertPlan(
        spec=manifest.spec,
        mapping=manifest.mapping,
        dtype=getattr(torch, manifest.dtype),
        random_seed=manifest.random_seed,
    )
    pieces = plan.pieces()
    return {
        target.name: torch.cat(list(target_chunks(target, pieces, plan))).view(target.shape)
        for target in targets(manifest.spec, manifest.mapping, rank)
    }
