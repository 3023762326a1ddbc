"""The rules in their order."""

from __future__ import annotations

from dataclasses import replace

from builders.fuse.attention import ATTENTION_RULES
from builders.fuse.embedding import EMBEDDING_RULES
from builders.fuse.graph import rewritten
from builders.fuse.linear import LINEAR_RULES
from builders.fuse.reduce import REDUCE_RULES
from builders.live import live
from builders.program import Program


def fused(program: Program) -> Program:
    """The same function of the same inputs, in fewer instructions; what fits no rule is left as it is."""
    program = live(program)
    for rule in (*EMBEDDING_RULES, *ATTENTION_RULES, *LINEAR_RULES, *REDUCE_RULES):
        program = rewritten(program, rule)
    return program


def narrow_logits(program: Program) -> Program:
    """Logits as the head computes them, where the program only widens them then: not all are read twice."""
    widening = program.instructions[-1]
    if "wanted" not in program.inputs or widening.op != "aten.to" or (widening.out,) != program.outputs:
        return program
    narrow: str = widening.args[0]["value"]
    return replace(program, instructions=program.instructions[:-1], outputs=(narrow,))
