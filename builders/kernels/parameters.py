"""What every kernel takes, read from its text: an engine may hold machine code that took something else."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from builders.kernels.call import Source


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Of one kernel."""

    arguments: int
    """How many a launch gives."""
    constants: frozenset[str]
    """Names of what is compiled in."""


def takes(source: Source) -> bool:
    """Whether launches still give what this was compiled from. Other meanings must have other parameters."""
    names = frozenset(name for name, _ in source.constants)
    return parameters(source.kernel) == Parameters(arguments=len(source.kinds), constants=names)


@cache
def parameters(kernel: str) -> Parameters | None:
    """Those of `file.function`; None where there is no such kernel. Needs no compiler."""
    file, function = kernel.split(".")
    path = Path(__file__).with_name(f"{file}_kernel.py")
    if not path.is_file():
        return None
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            constants = frozenset(arg.arg for arg in node.args.args if _is_constant(arg))
            return Parameters(arguments=len(node.args.args) - len(constants), constants=constants)
    return None


def _is_constant(arg: ast.arg) -> bool:
    return isinstance(arg.annotation, ast.Attribute) and arg.annotation.attr == "constexpr"
