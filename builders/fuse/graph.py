"""Who makes and who reads each value of a program, and how one instruction becomes others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

from builders.fuse.types import value_types
from builders.live import live, values_of
from builders.program import Instruction, Program, TensorType

Rule = Callable[["Graph", Instruction], tuple[Instruction, ...] | None]
"""What an instruction becomes, together with those before it whose results it alone reads."""


class Graph:
    """A program, for rules to look around in."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._makers = {step.out: step for step in program.instructions}
        self._readers: dict[str, list[Instruction]] = {}
        for step in program.instructions:
            for value in values_of(step):
                self._readers.setdefault(value, []).append(step)

    def maker(self, arg: Any, *ops: str) -> Instruction | None:
        """The instruction whose result this argument is, if it is of one of these operators."""
        step = self._makers.get(arg["value"]) if is_value(arg) else None
        return step if step and step.op in ops else None

    def readers(self, value: str) -> list[Instruction]:
        """Every reading of a value; an instruction that reads it twice is there twice."""
        return self._readers.get(value, [])

    def sole(self, arg: Any, *ops: str) -> Instruction | None:
        """The same as `maker`, if nothing but this argument reads the result."""
        step = self.maker(arg, *ops)
        return step if step and self.is_read(step.out, 1) else None

    def is_read(self, value: str, times: int) -> bool:
        """Whether a value that is no output is read this often."""
        return len(self.readers(value)) == times and value not in self.program.outputs

    def chain(self, arg: Any, *ops: str) -> Instruction | None:
        """The first of several instructions, each the `sole` maker of the next one's first argument.

        The operators are given from the last to the first.
        """
        step = None
        for op in ops:
            step = self.sole(step.args[0] if step else arg, op)
            if step is None:
                return None
        return step

    @cached_property
    def types(self) -> dict[str, TensorType]:
        """Of every value that is a tensor."""
        return value_types(self.program)


def is_value(arg: Any) -> bool:
    """Whether an argument is an earlier result."""
    return isinstance(arg, dict) and "value" in arg


def value(name: str) -> dict[str, str]:
    """An argument that is an earlier result."""
    return {"value": name}


def rewritten(program: Program, rule: Rule) -> Program:
    """Apply a rule until it finds nothing more; what it has made useless goes."""
    while (changed := _rewritten_once(program, rule)) is not None:
        program = changed
    return program


def _rewritten_once(program: Program, rule: Rule) -> Program | None:
    graph = Graph(program)
    for index, step in enumerate(program.instructions):
        made = rule(graph, step)
        if made is not None:
            before, after = program.instructions[:index], program.instructions[index + 1 :]
            return live(replace(program, instructions=(*before, *made, *after)))
    return None
