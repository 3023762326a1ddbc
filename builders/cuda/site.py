"""Where a program launches a kernel: all that decides which candidates there are and which is best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from builders.fuse.graph import is_value
from builders.fuse.types import value_types
from builders.keys import content_key
from builders.program import Program, TensorType


@dataclass(frozen=True, kw_only=True)
class Site:
    """An operator and what it is given; equal sites, in whatever programs, share their kernels."""

    op: str
    args: tuple[Any, ...]
    """A TensorType for a tensor, whose first size may change from step to step; anything else as it is."""

    def key(self, rows: int) -> str:
        """Names this site for so many rows."""
        args = [vars(arg) if isinstance(arg, TensorType) else arg for arg in self.args]
        return content_key(op=self.op, args=args, rows=rows)

    def given(self, place: int) -> bool:
        """Whether an optional argument is there."""
        return self.args[place] is not None


def sites_of(program: Program, ops: Mapping[str, Any]) -> dict[str, Site]:
    """The sites of the operators that have kernels, by the instruction's result."""
    types = value_types(program)
    return {
        step.out: Site(op=step.op, args=tuple(_described(arg, types) for arg in step.args))
        for step in program.instructions
        if step.op in ops
    }


def _described(arg: Any, types: Mapping[str, TensorType]) -> Any:
    """A value without a type is one that this model does not have, such as rotary angles."""
    return types.get(arg["value"]) if is_value(arg) else arg
