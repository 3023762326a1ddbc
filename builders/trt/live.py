"""Which of a program's instructions anything depends on: tracing leaves some behind that nothing reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from builders.program import Program


def live(program: Program) -> Program:
    """The program without what its outputs do not need."""
    needed, kept = set(program.outputs), []
    for instruction in reversed(program.instructions):
        if instruction.out in needed:
            needed |= set(_values([*instruction.args, *instruction.kwargs.values()]))
            kept.append(instruction)
    return replace(program, instructions=tuple(reversed(kept)))


def reads(program: Program, value: str) -> bool:
    """Whether any instruction does."""
    return any(value in _values([*step.args, *step.kwargs.values()]) for step in program.instructions)


def _values(args: list[Any]) -> Iterator[str]:
    for arg in args:
        if isinstance(arg, list):
            yield from _values(arg)
        elif isinstance(arg, dict) and "value" in arg:
            yield arg["value"]
