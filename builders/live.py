"""Which of a program's instructions anything depends on, and how long each of its values is needed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

from builders.program import Instruction, Program

WRITING = frozenset({"rankforge.attention", "fused.rotate_and_attend", "fused.write"})
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


def last_uses(program: Program, owned: Collection[str] = ()) -> tuple[tuple[str, ...], ...]:
    """For every instruction, the results whose memory nothing needs once it has run.

    Results that may share memory end together. Those that may share it with an output, or with what the
    program was given and does not own, never end.
    """
    shared = _sharing(program) | {name: name for name in owned if name in program.inputs}
    results = {*(step.out for step in program.instructions), *owned}
    needed = {shared.get(name, name) for name in program.outputs}
    needed |= {owner for owner in shared.values() if owner not in results}
    ended = []
    for step in reversed(program.instructions):
        used = {shared[name] for name in (step.out, *values_of(step)) if name in shared} - needed
        ended.append(tuple(name for name in shared if shared[name] in used))
        needed |= used
    return tuple(reversed(ended))


def _sharing(program: Program) -> dict[str, str]:
    """For every result, the first value whose memory it may be: its own name where that is new."""
    shared: dict[str, str] = {}
    for step in program.instructions:
        viewed = next(values_of(step)) if step.op in VIEWS else step.out
        shared[step.out] = shared.get(viewed, viewed)
    return shared
