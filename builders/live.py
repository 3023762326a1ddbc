"""Which of a program's instructions anything depends on, and how long each of its values is needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from builders.program import Instruction, Program

WRITING = frozenset({"rankforge.attention", "fused.rotate_and_write", "fused.write"})
"""Operators that write to the cache: they stay, whether or not their results are read."""

VIEWS = frozenset(
    """
    getitem aten.to aten.narrow aten.unsqueeze aten.flatten aten.unflatten aten.split_with_sizes aten.chunk
    """.split()
)
"""Operators whose result may be their first argument's memory."""


def live(program: Program) -> Program:
    """The program without what its outputs do not need: tracing leaves some behind that nothing reads."""
    needed, kept = set(program.outputs), []
    for instruction in reversed(program.instructions):
        if instruction.out in needed or instruction.op in WRITING:
            needed |= set(values_of(instruction))
            kept.append(instruction)
    return replace(program, instructions=tuple(reversed(kept)))


def reads(program: Program, value: str) -> bool:
    """Whether any instruction does."""
    return any(value in values_of(step) for step in program.instructions)


def values_of(instruction: Instruction) -> Iterator[str]:
    """What an instruction reads, once for every time that it does."""
    return _values([*instruction.args, *instruction.kwargs.values()])


def _values(args: list[Any]) -> Iterator[str]:
    for arg in args:
        if isinstance(arg, list):
            yield from _values(arg)
        elif isinstance(arg, dict) and "value" in arg:
            yield arg["value"]


def last_uses(program: Program) -> tuple[tuple[str, ...], ...]:
    """For every instruction, the results whose memory nothing needs once it has run.

    A result is needed as long as any view of it is, and for good where it is an output. Inputs, weights
    and constants belong to whoever gave them and never end.
    """
    needed: set[str] = set()
    ended: list[tuple[str, ...]] = []
    owners = _owners(program)
    results = {step.out for step in program.instructions}
    for name in program.outputs:
        needed |= owners.get(name, {name})
    for step in reversed(program.instructions):
        used = {owner for value in (step.out, *values_of(step)) for owner in owners.get(value, ())}
        ended.append(tuple(sorted((used & results) - needed)))
        needed |= used
    return tuple(reversed(ended))


def _owners(program: Program) -> dict[str, set[str]]:
    """For every result, the values whose memory it may be, itself among them."""
    owners: dict[str, set[str]] = {}
    for step in program.instructions:
        owners[step.out] = {step.out}
        if step.op in VIEWS:
            for value in values_of(step):
                owners[step.out] |= owners.get(value, {value})
    return owners
