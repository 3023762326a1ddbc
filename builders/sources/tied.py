"""A head that the configuration calls tied, and a checkpoint that stores another one: the numbers decide."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from builders.families.view import Family
from builders.sources.opened import Opened
from builders.sources.stored import Reader, Stored
from builders.spec import ModelSpec

_CHUNK_BYTES = 16 * 2**20


def with_own_head(opened: Opened) -> Opened:
    """The source as it is, or untied where a stored head is not the embedding, as Transformers does."""
    if not opened.spec.tied_embeddings:
        return opened
    short = {opened.family.without_prefix(name): parts for name, parts in opened.index.items()}
    embedding = short.get(_embedding(opened.family, opened.spec))
    heads = [short[name] for name in opened.family.heads if name in short]
    if embedding is None or all(_equal(head, embedding) for head in heads):
        return opened
    return replace(opened, spec=replace(opened.spec, tied_embeddings=False))


def _embedding(family: Family, spec: ModelSpec) -> str:
    return f"{family.views(spec)['embed'].source}.weight"


def _equal(left: tuple[Stored, ...], right: tuple[Stored, ...]) -> bool:
    """Part by part: ranks that trained together cut both alike."""
    reader = Reader()
    return len(left) == len(right) and all(
        _same_numbers(reader, one, other) for one, other in zip(left, right, strict=True)
    )


def _same_numbers(reader: Reader, left: Stored, right: Stored) -> bool:
    """Some rows at a time, so that neither is ever whole in memory."""
    if left.shape != right.shape or len(left.shape) != 2:
        return False
    num_rows, width = left.shape
    step = max(1, _CHUNK_BYTES // (left.dtype.itemsize * max(1, width)))
    return all(
        _rows(reader, left, start, step).eq(_rows(reader, right, start, step)).all()
        for start in range(0, num_rows, step)
    )


def _rows(reader: Reader, stored: Stored, start: int, count: int) -> Tensor:
    return reader.tensor(stored)[start : start + count]
