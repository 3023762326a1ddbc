"""Rules for sums over ranks: a kernel each, with the residual that is added after it."""

from __future__ import annotations

import torch

from builders.fuse.graph import Graph, is_value, value
from builders.kernels.reduce import can_reduce
from builders.program import Instruction

REDUCE = "fused.all_reduce"


def over_ranks(graph: Graph, step: Instruction) -> tuple[Instruction, ...] | None:
    """Every sum that there is a kernel for."""
    if step.op != "rankforge.all_reduce":
        return None
    x, ranks = step.args
    if not can_reduce(getattr(torch, graph.types[x["value"]].dtype), ranks):
        return None
    return (Instruction(op=REDUCE, args=(x, ranks, None), kwargs={}, out=step.out),)


def before_residual(graph: Graph, step: Instruction) -> tuple[Instruction, ...] | None:
    """Together with a value of the same type: with another it would be a broadcast or a conversion."""
    if step.op != "aten.add" or step.kwargs or not all(map(is_value, step.args)):
        return None
    for residual, arg in (step.args, step.args[::-1]):
        reduced = graph.sole(arg, REDUCE)
        if reduced is None or reduced.args[2] is not None:
            continue
        if graph.types[reduced.out] == graph.types.get(residual["value"]):
            args = (*reduced.args[:2], value(residual["value"]))
            return (Instruction(op=REDUCE, args=args, kwargs={}, out=step.out),)
    return None


REDUCE_RULES = (over_ranks, before_residual)
