"""Rules that make what comes before the layers one lookup."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from builders.fuse.graph import Graph, value
from builders.program import Instruction

EMBED = "fused.embed"


@dataclass(frozen=True, kw_only=True)
class Embed:
    """The arguments of fused.embed, in its order."""

    ids: Any
    weight: Any
    first: Any = None
    scale: float = 1.0
    positions: Any = None
    position_weight: Any = None

    @staticmethod
    def of(step: Instruction) -> Embed:
        return Embed(**dict(zip(Embed.__dataclass_fields__, step.args, strict=True)))

    def to(self, out: str) -> tuple[Instruction]:
        """As the one instruction that makes `out`."""
        return (Instruction(op=EMBED, args=tuple(vars(self).values()), kwargs={}, out=out),)

    @property
    def is_plain(self) -> bool:
        """Whether it is a lookup and nothing else."""
        return self == Embed(ids=self.ids, weight=self.weight)


def lookup(_graph: Graph, step: Instruction) -> tuple[Instruction, ...] | None:
    """Every lookup is that kernel."""
    if step.op != "aten.embedding" or step.kwargs or len(step.args) != 2:
        return None
    weight, ids = step.args
    return Embed(ids=ids, weight=weight).to(step.out)


def of_held_rows(graph: Graph, step: Instruction) -> tuple[Instruction, ...] | None:
    """A table of which this rank holds some rows: zeros for other ids, whose row 0 is looked up."""
    if step.op != "aten.mul" or step.kwargs:
        return None
    found, mask = graph.sole(step.args[0], EMBED), graph.chain(step.args[1], *_MASK)
    if found is None or mask is None or not (embed := Embed.of(found)).is_plain:
        return None
    clamp = graph.sole(embed.ids, "aten.clamp")
    local = graph.maker(clamp.args[0], "aten.sub") if clamp else None
    if clamp is None or local is None or graph.types[step.out] != graph.types[found.out]:
        return None
    rows, here = int(graph.types[embed.weight["value"]].shape[0]), value(local.out)
    low, high = graph.sole(mask.args[0], "aten.ge"), graph.sole(mask.args[1], "aten.lt")
    bounds = [part.args if part else () for part in (clamp, low, high)]
    if bounds != [(here, 0, rows - 1), (here, 0), (here, rows)] or not graph.is_read(local.out, 3):
        return None
    ids, first = local.args
    return replace(embed, ids=ids, first=first).to(step.out)


_MASK = ("aten.to", "aten.unsqueeze", "aten.logical_and")


def before_scale(graph: Graph, step: Instruction) -> tuple[Instruction, ...] | None:
    """What is looked up, times a number."""
    if step.op != "aten.mul" or step.kwargs or not isinstance(step.args[1], int | float):
        return None
    found = graph.sole(step.args[0], EMBED)
    if found is None or (embed := Embed.of(found)).scale != 1 or embed.positions is not None:
        return None
    return replace(embed, scale=float(step.args[1])).to(step.out)


def before_positions(graph: Graph, step: Instruction) -> tuple[Instruction, ...] | None:
    """Two lookups of equal size, added: the second is a plain one."""
    if step.op != "aten.add" or step.kwargs:
        return None
    tokens, other = (graph.sole(arg, EMBED) for arg in step.args)
    if tokens is None or other is None or graph.types[tokens.out] != graph.types[other.out]:
        return None
    embed, learned = Embed.of(tokens), Embed.of(other)
    if embed.positions is not None or not learned.is_plain:
        return None
    return replace(embed, positions=learned.ids, position_weight=learned.weight).to(step.out)


EMBEDDING_RULES = (lookup, of_held_rows, before_scale, before_positions)
