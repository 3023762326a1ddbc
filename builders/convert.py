"""Converting: plan what every rank's file holds, then stream one file at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from builders.errors import SourceError
from builders.mapping import Mapping as RankMapping
from builders.mapping import check_mapping
from builders.params import params
from builders.shard import Slice, Target, targets
from builders.sources.pieces import FilePieces, Located, Pieces, RandomPieces
from builders.spec import ModelSpec
from builders.tensor_file import Written, write_tensors

_CHUNK_BYTES = 32 * 2**20


@dataclass(frozen=True, kw_only=True)
class ConvertPlan:
    """Everything a worker needs to convert any rank; plain data."""

    spec: ModelSpec
    mapping: RankMapping
    dtype: torch.dtype
    located: Mapping[str, Located] = field(default_factory=dict)
    """Where every parameter lies, unless all are made up."""
    random_seed: int | None = None
    """What parameters are made up from."""

    def __post_init__(self) -> None:
        check_mapping(self.spec, self.mapping)

    def pieces(self) -> Pieces:
        """What reads or makes up slices of the parameters."""
        if self.random_seed is None:
            return FilePieces(self.located)
        return RandomPieces(self.spec, self.random_seed)

    @cached_property
    def num_rows(self) -> Mapping[str, int]:
        """Of every whole parameter, before its padding."""
        return {param.name: param.shape[0] for param in params(self.spec)}


def rank_elements(spec: ModelSpec, mapping: RankMapping, rank: int) -> int:
    """How many numbers a rank stores."""
    return sum(torch.Size(target.shape).numel() for target in targets(spec, mapping, rank))


def rank_file_name(rank: int) -> str:
    """The file of a rank, in every checkpoint."""
    return f"rank{rank}.safetensors"


def convert_rank(
    plan: ConvertPlan, rank: int, folder: Path, advance: Callable[[int], None] = lambda _bytes: None
) -> Written:
    """Write one rank's file; `advance` hears of every chunk's bytes."""
    wanted = list(targets(plan.spec, plan.mapping, rank))
    pieces = plan.pieces()

    def chunks() -> Iterator[Tensor]:
        for target in wanted:
            for chunk in target_chunks(target, pieces, plan):
                yield chunk
                advance(chunk.nbytes)

    shapes = {target.name: target.shape for target in wanted}
    return write_tensors(folder / rank_file_name(rank), shapes, plan.dtype, chunks())


def target_chunks(target: Target, pieces: Pieces, plan: ConvertPlan) -> Iterator[Tensor]:
    """A target's elements in order, a bounded number at a time."""
    for part in target.slices:
        rows_at_once = max(1, _CHUNK_BYTES // (plan.dtype.itemsize * torch.Size(part.shape[1:]).numel()))
        for start in range(part.rows[0], part.rows[1], rows_at_once):
            stop = min(start + rows_at_once, part.rows[1])
            rows = read_rows(pieces, part, (start, stop), plan.num_rows[part.param])
            yield _narrowed(rows, plan.dtype, part.param)


def _narrowed(rows: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """In another dtype; only float16 has no room for what the others hold."""
    narrow = rows.to(dtype)
    if dtype == torch.float16 != rows.dtype and (narrow.isinf() & rows.isfinite()).any():
        raise SourceError(
            f"{name}: holds {rows[rows.isfinite()].abs().max().item():g}, and --dtype float16 ends at 65504; "
            "use --dtype bfloat16 or float32"
        )
    return narrow


def read_rows(pieces: Pieces, part: Slice, rows: tuple[int, int], num_rows: int) -> Tensor:
    """Rows of a slice, zeros where it is padding: past the parameter's own `num_rows`."""
    stop = rows[0] if part.zeros else min(rows[1], num_rows)
    padding = torch.zeros(rows[1] - max(stop, rows[0]), *part.shape[1:])
    if stop <= rows[0]:
        return padding
    held = pieces.read(part.param, (rows[0], stop), part.cols)
    return torch.cat([held, padding.to(held.dtype)]) if len(padding) else held
