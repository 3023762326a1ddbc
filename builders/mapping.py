"""How a model is spread over ranks: the sizes, one rank's place, and what it owns."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from builders.errors import LayoutError
from builders.spec import ModelSpec

VOCAB_ALIGNMENT = 64
"""Every rank's slice of the vocabulary is a multiple of this, so its matrix products are aligned."""

_MOST = 2**20
"""Of every size: more ranks than anybody has, few enough to reckon with."""


@dataclass(frozen=True, kw_only=True)
class Mapping:
    """tp · pp ranks; experts are spread over ep of every tp ranks, each expert over the tp / ep others."""

    tp_size: int = 1
    pp_size: int = 1
    ep_size: int = 1
    embedding_split: Literal["none", "vocab", "hidden"] = "none"
    """What the tensor parallel ranks split of the token embedding."""
    version: int = 1
    """Raised when the same sizes start to mean other shards."""

    def __post_init__(self) -> None:
        for name in ("tp_size", "pp_size", "ep_size"):
            size = getattr(self, name)
            if not 1 <= size <= _MOST:
                rule = "at least 1" if size < 1 else f"at most {_MOST}"
                raise LayoutError(f"--{name}={size}: must be {rule}")
        if self.tp_size % self.ep_size:
            raise LayoutError(
                f"--ep_size={self.ep_size}: experts are spread over the {self.tp_size} tensor parallel "
                f"ranks; sizes that work: {_list(_divisors(self.tp_size))}"
            )

    @property
    def world_size(self) -> int:
        return self.tp_size * self.pp_size

    @property
    def moe_tp_size(self) -> int:
        """Over how many ranks each expert is split."""
        return self.tp_size // self.ep_size

    def place(self, rank: int) -> Place:
        """Where a rank stands; neighbouring ranks are of one tensor parallel group."""
        pp_rank, tp_rank = divmod(rank, self.tp_size)
        ep_rank, moe_tp_rank = divmod(tp_rank, self.moe_tp_size)
        return Place(rank=rank, tp=tp_rank, pp=pp_rank, ep=ep_rank, moe_tp=moe_tp_rank)


@dataclass(frozen=True, kw_only=True)
class Place:
    """One rank's coordinates."""

    rank: int
    tp: int
    pp: int
    ep: int
    moe_tp: int


@dataclass(frozen=True, kw_only=True)
class RankShape:
    """The sizes of one rank's part of the model. Ranks of equal shape run the same program."""

    layers: range
    first: bool
    """Holds the embedding."""
    last: bool
    """Holds the final norm and the head."""
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    num_experts: int
    vocab_size: int
    """Of the head: the padded vocabulary's part."""


def padded_vocab(spec: ModelSpec, mapping: Mapping) -> int:
    """The vocabulary, rounded up so that it splits evenly and aligned."""
    unit = VOCAB_ALIGNMENT * mapping.tp_size
    return -(-spec.vocab_size // unit) * unit


def stage_layers(num_layers: int, pp_size: int, pp_rank: int) -> range:
    """The layers of a pipeline stage: an even split, the remainder to the early stages."""
    base, extra = divmod(num_layers, pp_size)
    start = pp_rank * base + min(pp_rank, extra)
    return range(start, start + base + (pp_rank < extra))


def rank_shape(spec: ModelSpec, mapping: Mapping, rank: int) -> RankShape:
    """What rank holds; the mapping has been checked against the spec."""
    place = mapping.place(rank)
    return RankShape(
        layers=stage_layers(spec.num_layers, mapping.pp_size, place.pp),
        first=place.pp == 0,
        last=place.pp == mapping.pp_size - 1,
        num_heads=spec.num_heads // mapping.tp_size,
        num_kv_heads=max(1, spec.num_kv_heads // mapping.tp_size),
        intermediate_size=spec.intermediate_size // (mapping.moe_tp_size if spec.moe else mapping.tp_size),
        num_experts=spec.moe.num_experts // mapping.ep_size if spec.moe else 0,
        vocab_size=padded_vocab(spec, mapping) // mapping.tp_size,
    )


def check_mapping(spec: ModelSpec, mapping: Mapping) -> None:
    """Refuse a layout that cannot be made, with the sizes that would work."""
    if mapping.pp_size > spec.num_layers:
        raise LayoutError(
            f"--pp_size={mapping.pp_size}: a stage needs a layer and the model has {spec.num_layers}; "
            f"sizes that work: 1 to {spec.num_layers}"
        )
    if mapping.tp_size > spec.vocab_size:
        raise LayoutError(
            f"--tp_size={mapping.tp_size}: larger than the vocabulary of {spec.vocab_size}; "
            f"sizes that work: {_list(tp_sizes(spec, mapping))}"
        )
    _check_tp(spec, mapping)
    _check_moe(spec, mapping)


def tp_sizes(spec: ModelSpec, mapping: Mapping) -> list[int]:
    """Every tensor parallel size that this model can be split into."""
    return [
        size
        for size in _divisors(spec.num_heads)
        if size <= spec.vocab_size
        and (spec.num_kv_heads % size == 0 or size % spec.num_kv_heads == 0)
        and (_ep_sizes(spec, size) if spec.moe else spec.intermediate_size % size == 0)
        and (mapping.embedding_split != "hidden" or spec.hidden_size % size == 0)
    ]


def _check_tp(spec: ModelSpec, mapping: Mapping) -> None:
    works = tp_sizes(spec, mapping)
    if mapping.tp_size not in works:
        hidden = f", a hidden size of {spec.hidden_size}" if mapping.embedding_split == "hidden" else ""
        raise LayoutError(
            f"--tp_size={mapping.tp_size}: does not split {spec.num_heads} heads, {spec.num_kv_heads} "
            f"key-value heads{hidden} and an MLP of {spec.intermediate_size} evenly; "
            f"sizes that work: {_list(works)}"
        )


def _check_moe(spec: ModelSpec, mapping: Mapping) -> None:
    if spec.moe is None:
        if mapping.ep_size > 1:
            raise LayoutError(f"--ep_size={mapping.ep_size}: {spec.family} has no experts; use --ep_size 1")
        return
    works = _ep_sizes(spec, mapping.tp_size)
    if mapping.ep_size not in works:
        raise LayoutError(
            f"--ep_size={mapping.ep_size}: does not split {spec.moe.num_experts} experts of width "
            f"{spec.intermediate_size} over {mapping.tp_size} ranks; sizes that work: {_list(works)}"
        )


def _ep_sizes(spec: ModelSpec, tp_size: int) -> list[int]:
    """Every expert parallel size under a tensor parallel one."""
    experts, width = (spec.moe.num_experts if spec.moe else 1), spec.intermediate_size
    return [size for size in _divisors(tp_size) if experts % size == 0 and width % (tp_size // size) == 0]


def _divisors(number: int) -> list[int]:
    """In order; every one up to the square root has a partner above it."""
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    large = [number // size for size in reversed(small) if size * size != number]
    return small + large


def _list(sizes: Iterable[int]) -> str:
    return ", ".join(map(str, sizes)) or "none"
