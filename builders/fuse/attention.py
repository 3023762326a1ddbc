"""Rules that bring attention to its kernels: one that does all of it, or one that reads what was written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from builders.fuse.graph import Graph
from builders.program import Instruction


@dataclass(frozen=True, kw_only=True)
class Attention:
    """The arguments of rankforge.attention, in its order."""

    q: Any
    k: Any
    v: Any
    k_cache: Any
    v_cache: Any
    positions: Any
    sequences: Any
    lengths: Any
    block_table: Any
    slopes: Any
    k_scale: Any
    v_scale: Any
    scale: float
    window: int

    @staticmethod
    def of(step: Instruction) -> Attention | None:
        """None for an instruction that is something else."""
        if step.op != "rankforge.attention":
            return None
        return Attention(**dict(zip(Attention.__dataclass_fields__, step.args, strict=True)))

    @property
    def place(self) -> tuple[Any, ...]:
        """Where in the cache a step's tokens are written."""
        caches = (self.k_cache, self.v_cache)
        return (*caches, self.positions, self.sequences, self.block_table, self.k_scale, self.v_scale)

    @property
    def where(self) -> tuple[Any, ...]:
        """The cache, and what of it a step's tokens read."""
        return (self.k_cache, self.v_cache, self.positions, self.sequences, self.lengths, self.block_table)

    @property
    def settings(self) -> tuple[Any, ...]:
        """What is the same for every step."""
        return (self.slopes, self.k_scale, self.v_scale, self.scale, self.window)

    def read(self, q: Any, out: str) -> Instruction:
        """Attention over what is in the cache."""
        return Instruction(op="fused.attend", args=(q, *self.where, *self.settings), kwargs={}, out=out)


def packed_heads(graph: Graph, step: Instruction) -> tuple[Instruction, ...] | None:
    """q, k and v are parts of one value, rotated or not, clipped or not."""
    attention = Attention.of(step)
    if attention is None:
        return None
    parts = [_part(graph, arg) for arg in (attention.q, attention.k, attention.v)]
    q, k, v = parts
    if q is None or k is None or v is None or not _are_packed(graph, q, k, v):
        return None
    qkv, clip = _unclipped(graph, q.split.args[0])
    heads = q.split.args[1][0] // q.dim
    args = (qkv, *q.angles, *attention.where, *attention.settings, heads, clip)
    return (Instruction(op="fused.rotate_and_attend", args=args, kwargs={}, out=step.out),)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One of q, k and v: where it was split off, and what was done to it."""

    split: Instruction
    index: int
    dim: int
    angles: list[Any]
    """cos and sin, None each where nothing is rotated."""


def _part(graph: Graph, arg: Any) -> _Part | None:
    rotate = graph.sole(arg, "rankforge.rotate")
    arg, *angles = rotate.args if rotate else (arg, None, None)
    heads = graph.sole(arg, "aten.unflatten")
    item = graph.sole(heads.args[0], "getitem") if heads else None
    split = graph.maker(item.args[0], "aten.split_with_sizes") if item else None
    if heads is None or item is None or split is None:
        return None
    _, axis, sizes = heads.args
    if (axis, sizes[0], len(sizes)) != (-1, -1, 2) or split.args[2:] != (-1,):
        return None
    return _Part(split=split, index=item.args[1], dim=sizes[1], angles=angles)


def _are_packed(graph: Graph, q: _Part, k: _Part, v: _Part) -> bool:
    """In the kernel's order, with nothing else between them or reading them."""
    split = q.split
    return (
        (q.index, k.index, v.index) == (0, 1, 2)
        and split is k.split is v.split
        and len(split.args[1]) == 3
        and graph.is_read(split.out, 3)
        and split.args[1][1] == split.args[1][2]
        and q.angles == k.angles
        and v.angles == [None, None]
    )


def _unclipped(graph: Graph, qkv: Any) -> tuple[Any, float | None]:
    """What is packed, and the limit that the kernel may apply in the place of an instruction."""
    clamp = graph.sole(qkv, "aten.clamp")
    if clamp is None or clamp.kwargs or len(clamp.args) != 3 or clamp.args[1] != -clamp.args[2]:
        return qkv, None
    return clamp.args[0], clamp.args[2]


def any_heads(_graph: Graph, step: Instruction) -> tuple[Instruction, ...] | None:
    """Where something stands between the projection and attention, such as a norm of q and k."""
    attention = Attention.of(step)
    if attention is None:
        return None
    args = (attention.k, attention.v, *attention.place)
    write = Instruction(op="fused.write", args=args, kwargs={}, out=f"{step.out}.written")
    return write, attention.read(attention.q, step.out)


ATTENTION_RULES = (packed_heads, any_heads)
