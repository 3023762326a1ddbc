"""Reading any slice of any whole parameter: from files through a family's views, or made up at random."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from builders.errors import SourceError, some_of
from builders.families.view import Family, View
from builders.params import Param, params
from builders.shard import Span
from builders.sources.stored import Index, Reader, Stored
from builders.spec import ModelSpec


class Pieces(Protocol):
    """Slices of whole parameters."""

    def read(self, param: str, rows: Span, cols: Span | None) -> Tensor:
        """Rows, and columns of a matrix, of a parameter; possibly a mapped view."""


@dataclass(frozen=True, kw_only=True)
class Located:
    """A parameter and where it lies; plain data that a worker can be sent."""

    param: Param
    view: View
    parts: tuple[Stored, ...]

    def fits(self, rows: int, cols: int) -> bool:
        """Whether a source matrix has the dimension that all its parameters span whole."""
        if len(self.param.shape) == 1:
            return cols == 1
        if not self.view.transposed:
            return cols == self.param.shape[1]
        return cols == self.param.shape[0] if self.view.rows_per_expert else rows == self.param.shape[1]


def locate(family: Family, spec: ModelSpec, index: Index) -> dict[str, Located]:
    """Find every parameter of the model in the index, and prove that nothing there is left over."""
    views = family.views(spec)
    names = {family.without_prefix(name): name for name in index}
    if len(names) < len(index):
        twice = index.keys() - names.values()
        raise SourceError(f"checkpoint has {len(twice)} tensors with and without prefix: {some_of(twice)}")
    found, missing = {}, []
    for param in params(spec):
        view, source = _source_of(param, views)
        if source in names:
            found[param.name] = Located(param=param, view=view, parts=index[names[source]])
        else:
            missing.append(source)
    if missing:
        raise SourceError(f"checkpoint lacks {len(missing)} tensors of {family.name}: {some_of(missing)}")
    used = {_source_of(param, views)[1] for param in params(spec)}
    left = [name for short, name in names.items() if short not in used and not _ignored(family, spec, short)]
    if left:
        raise SourceError(
            f"checkpoint has {len(left)} tensors that {family.name} does not use: {some_of(left)}"
        )
    _check_dtypes(found)
    _check_shapes(found)
    return found


def _source_of(param: Param, views: Mapping[str, View]) -> tuple[View, str]:
    module, leaf = param.name.rsplit(".", 1)
    pattern = module
    if param.layer is not None:
        pattern = pattern.replace(f"layers.{param.layer}.", "layers.{i}.", 1)
    if param.expert is not None:
        pattern = pattern.replace(f"experts.{param.expert}.", "experts.{e}.", 1)
    view = views[pattern]
    source = view.source.replace("{i}", str(param.layer)).replace("{e}", str(param.expert))
    return view, source if view.bare else f"{source}{view.joined}{leaf}"


def _ignored(family: Family, spec: ModelSpec, name: str) -> bool:
    """A tied head is a copy of the embedding: `tied.py` has compared them."""
    copied = spec.tied_embeddings and name in family.heads
    return copied or re.fullmatch(family.ignored, name) is not None


def typical_part(located: Mapping[str, Located]) -> Stored:
    """The first tensor of the dtype that most bytes of the model have."""
    parts = dict.fromkeys(part for found in located.values() for part in found.parts)
    num_bytes: dict[torch.dtype, int] = {}
    for part in parts:
        size = part.dtype.itemsize * _numel(part.shape)
        num_bytes[part.dtype] = num_bytes.get(part.dtype, 0) + size
    return next(part for part in parts if num_bytes[part.dtype] == max(num_bytes.values()))


def _check_dtypes(found: Mapping[str, Located]) -> None:
    for located in found.values():
        for part in located.parts:
            if not part.dtype.is_floating_point:
                raise SourceError(
                    f"{part.file}: tensor {part.key} has dtype {str(part.dtype).removeprefix('torch.')}; "
                    "weights must be floating-point numbers"
                )


def _check_shapes(found: Mapping[str, Located]) -> None:
    """The parameters in a tensor fill it exactly: none is short of rows and no row is left over."""
    covered: dict[tuple[Stored, ...], int] = {}
    for located in found.values():
        if located.param.name == "head.weight" and found["embed.weight"].parts == located.parts:
            continue
        covered.setdefault(located.parts, 0)
        covered[located.parts] += _numel(located.param.shape)
    for located in found.values():
        first, (rows, cols) = located.parts[0], _whole_shape(located)
        if other := next((part for part in located.parts if part.shape != first.shape), None):
            raise SourceError(
                f"{other.file}: tensor {other.key} of shape {list(other.shape)} is {list(first.shape)} in "
                f"{first.file.name}; the files are not of one checkpoint"
            )
        if rows * cols != covered[located.parts] or not located.fits(rows, cols):
            raise SourceError(
                f"{first.file}: tensor {first.key} of shape {list(first.shape)} ({len(located.parts)} parts) "
                f"does not hold {located.param.name} of shape {list(located.param.shape)}; "
                "the configuration is another model's"
                + (", or files are missing" if rows * cols < covered[located.parts] else "")
            )


def _numel(shape: Iterable[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _joined_along(located: Located) -> int | None:
    """The dimension that parts were cut along; None where each part is the whole tensor."""
    count, param = len(located.parts), located.param
    if count == 1 or param.kind in ("replicated", "row_bias"):
        return None
    _rows, cols = _matrix_shape(located.parts[0])
    return 1 if len(param.shape) > 1 and cols * count == param.shape[1] else 0


def _whole_shape(located: Located) -> tuple[int, int]:
    rows, cols = _matrix_shape(located.parts[0])
    along, count = _joined_along(located), len(located.parts)
    return (rows * count if along == 0 else rows, cols * count if along == 1 else cols)


class FilePieces:
    """Parameters in the files of a checkpoint."""

    def __init__(self, located: Mapping[str, Located], reader: Reader | None = None) -> None:
        self._located, self._reader = located, reader or Reader()

    def read(self, param: str, rows: Span, cols: Span | None) -> Tensor:
        located = self._located[param]
        unit = located.view.interleaved
        if not unit:
            return self._stored(located, rows, cols)
        whole = (rows[0] // unit * unit, -(-rows[1] // unit) * unit)
        pairs = self._stored(located, whole, cols).unflatten(0, (-1, unit // 2, 2))
        return pairs.transpose(1, 2).flatten(0, 2)[rows[0] - whole[0] : rows[1] - whole[0]]

    def _stored(self, located: Located, rows: Span, cols: Span | None) -> Tensor:
        """The parameter's rows in the order of the source."""
        spans = list(_spans(located, rows))
        if cols is None:
            return _join([self._source(located, span, (0, 1)) for span in spans])[:, 0]
        if not located.view.transposed:
            return _join([self._source(located, span, cols) for span in spans])
        first = located.view.rows_per_expert * (located.param.expert or 0)
        cols = (first + cols[0], first + cols[1])
        return _join([self._source(located, cols, span).t() for span in spans])

    def _source(self, located: Located, rows: Span, cols: Span) -> Tensor:
        """A rectangle of the source as one matrix, whatever parts it lies in."""
        along = _joined_along(located)
        if along is None:
            return _matrix(self._reader.tensor(located.parts[0]))[slice(*rows), slice(*cols)]
        span = cols if along else rows
        size = _matrix_shape(located.parts[0])[along]
        pieces = []
        for index, (start, stop) in _overlaps(span, size):
            part = _matrix(self._reader.tensor(located.parts[index]))
            pieces.append(part[slice(*rows), start:stop] if along else part[start:stop, slice(*cols)])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=along)


def _matrix(tensor: Tensor) -> Tensor:
    return tensor[:, None] if tensor.dim() == 1 else tensor.flatten(0, -2)


def _matrix_shape(stored: Stored) -> tuple[int, int]:
    shape = stored.shape if len(stored.shape) > 1 else (*stored.shape, 1)
    return _numel(shape[:-1]), shape[-1]


def _overlaps(span: Span, size: int) -> Iterator[tuple[int, Span]]:
    """The parts of `size` each that a span touches, with the span inside each."""
    for index in range(span[0] // size, -(-span[1] // size)):
        start = index * size
        yield index, (max(span[0] - start, 0), min(span[1] - start, size))


def _spans(located: Located, rows: Span) -> Iterator[Span]:
    """The parameter's rows as spans of the source's rows."""
    view = located.view
    offset = view.offset
    if not view.transposed:
        offset += view.rows_per_expert * (located.param.expert or 0)
    if not view.block:
        yield offset + rows[0], offset + rows[1]
        return
    for block, (start, stop) in _overlaps(rows, view.block):
        first = offset + block * view.stride
        yield first + start, first + stop


def _join(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


class RandomPieces:
    """Parameters that no file holds: the same numbers for the same seed, whatever the layout."""

    tile_rows = 256

    def __init__(self, spec: ModelSpec, seed: int) -> None:
        self._params = {param.name: param for param in params(spec)}
        self._seed, self._tied = seed, spec.tied_embeddings
        self._one = 0.0 if spec.norm == "layernorm1p" else 1.0

    def read(self, param: str, rows: Span, cols: Span | None) -> Tensor:
        param = "embed.weight" if self._tied and param == "head.weight" else param
        shape = self._params[param].shape
        if cols is None:
            is_norm = param.endswith("norm.weight")
            return torch.full((rows[1] - rows[0],), self._one if is_norm else 0.0)
        tiles = range(rows[0] // self.tile_rows, -(-rows[1] // self.tile_rows))
        first = tiles.start * self.tile_rows
        whole = torch.cat([self._tile(param, tile, shape[1]) for tile in tiles])
        return whole[rows[0] - first : rows[1] - first, slice(*cols)]

    def _tile(self, param: str, tile: int, width: int) -> Tensor:
        digest = hashlib.sha256(f"{self._seed}/{param}/{tile}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return torch.randn(self.tile_rows, width, generator=generator) * 0.02
