"""Which slice of every parameter a rank owns, and the tensors of its file that the slices make."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from builders.mapping import Mapping, Place, padded_vocab, stage_layers
from builders.params import Param, embedding_params, head_params, layer_params
from builders.spec import ModelSpec

Span = tuple[int, int]
"""start, stop"""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Rows, and columns of a matrix, of one whole parameter. Rows past its end are zeros."""

    param: str
    rows: Span
    cols: Span | None = None
    zeros: bool = False
    """Nothing is read: the slice is filled with zeros."""

    @property
    def shape(self) -> tuple[int, ...]:
        spans = (self.rows,) if self.cols is None else (self.rows, self.cols)
        return tuple(stop - start for start, stop in spans)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A tensor of a rank file: its slices, one after another along the rows."""

    name: str
    shape: tuple[int, ...]
    slices: tuple[Slice, ...]


def slice_for(param: Param, mapping: Mapping, place: Place, vocab: int) -> Slice:
    """What a rank owns of a parameter that its stage holds; `vocab` is the padded vocabulary."""
    size = param.shape[0]
    cols = (0, param.shape[1]) if len(param.shape) == 2 else None
    tp, of = place.tp, mapping.tp_size
    if param.expert is not None:
        tp, of = place.moe_tp, mapping.moe_tp_size
    if param.kind == "row":
        return Slice(param=param.name, rows=(0, size), cols=_share(param.shape[1], tp, of))
    if param.kind == "row_bias":
        return Slice(param=param.name, rows=(0, size), zeros=tp > 0)
    if param.kind == "embedding" and mapping.embedding_split == "hidden":
        return Slice(param=param.name, rows=(0, vocab), cols=_share(param.shape[1], tp, of))
    return Slice(param=param.name, rows=_rows(param, mapping, tp, of, vocab), cols=cols)


def _rows(param: Param, mapping: Mapping, tp: int, of: int, vocab: int) -> Span:
    size = param.shape[0]
    if param.kind == "replicated":
        return (0, size)
    if param.kind == "embedding" and mapping.embedding_split == "none":
        return (0, vocab)
    if param.kind in ("vocab", "embedding"):
        return _share(vocab, tp, of)
    if param.kind == "kv" and param.units < of:
        head, width = tp * param.units // of, size // param.units
        return (head * width, (head + 1) * width)
    return _share(size, tp, of)


def _share(size: int, index: int, count: int) -> Span:
    share = size // count
    return (index * share, (index + 1) * share)


def head_is_embedding(spec: ModelSpec, mapping: Mapping) -> bool:
    """Whether a rank's head is a view of the embedding that the same rank holds, and not stored."""
    return spec.tied_embeddings and mapping.pp_size == 1 and mapping.embedding_split != "hidden"


def targets(spec: ModelSpec, mapping: Mapping, rank: int) -> Iterator[Target]:
    """Every tensor of a rank's file, in order."""
    place = mapping.place(rank)
    vocab = padded_vocab(spec, mapping)
    stored: dict[str, list[Slice]] = {}
    for param in held(spec, mapping, place):
        stored.setdefault(stored_name(param.name), []).append(slice_for(param, mapping, place, vocab))
    for name, slices in stored.items():
        yield Target(name=name, shape=_shape(spec, mapping, name, slices), slices=tuple(slices))


def held(spec: ModelSpec, mapping: Mapping, place: Place) -> Iterator[Param]:
    """The parameters of which this rank stores a part."""
    if place.pp == 0:
        yield from embedding_params(spec)
    experts = experts_of(spec, mapping, place)
    for layer in stage_layers(spec.num_layers, mapping.pp_size, place.pp):
        for param in layer_params(spec, layer):
            if param.expert is None or param.expert in experts:
                yield param
    if place.pp == mapping.pp_size - 1:
        tied = head_is_embedding(spec, mapping)
        yield from (param for param in head_params(spec) if not (tied and param.name == "head.weight"))


def experts_of(spec: ModelSpec, mapping: Mapping, place: Place) -> range:
    """The experts that a rank holds, whole or in part."""
    share = spec.moe.num_experts // mapping.ep_size if spec.moe else 0
    return range(place.ep * share, (place.ep + 1) * share)


_FUSED = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "up"}


def stored_name(param: str) -> str:
    """The tensor of a rank file that holds a parameter: q, k, v are one, and gate precedes up."""
    *path, module, leaf = param.split(".")
    if "experts" in path:
        path = path[: path.index("experts")]
    return ".".join([*path, _FUSED.get(module, module), leaf])


def _shape(spec: ModelSpec, mapping: Mapping, name: str, slices: list[Slice]) -> tuple[int, ...]:
    rows, *cols = (sum(part.shape[0] for part in slices), *slices[0].shape[1:])
    experts = spec.moe.num_experts // mapping.ep_size if spec.moe else 0
    if ".moe." in name and "router" not in name:
        return (experts, rows // experts, *cols)
    return (rows, *cols)
