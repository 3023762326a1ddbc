"""The rules in their order."""

from __future__ import annotations

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
