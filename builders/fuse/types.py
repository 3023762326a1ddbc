"""The types of all values of a program, found by running it on tensors without storage."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from builders.fuse.reference import fused_operators
from builders.program import Program, TensorType, plain_operators, run

_PRIMES = (10007, 20011, 30011, 40009, 50021, 60013, 70001, 80021)
"""Stand for sizes that change from step to step."""


def typed(program: Program) -> Program:
    """The program with the types of its results, for those who load it: finding them imports a compiler."""
    found = value_types(program)
    return replace(program, results={name: found[name] for name in found if name not in program.types})


def value_types(program: Program) -> dict[str, TensorType]:
    """Of inputs, weights, constants and results; a changing size keeps its name."""
    if program.results:
        return {**program.types, **program.results}
    names = sorted({size for of in program.types.values() for size in of.shape if not size.isdecimal()})
    sizes = dict(zip(names, _free_primes(program), strict=False))
    given = {
        name: torch.empty(
            [sizes[size] if size in sizes else int(size) for size in of.shape],
            dtype=getattr(torch, of.dtype),
            device="meta",
        )
        for name, of in program.types.items()
    }
    results = [step.out for step in program.instructions]
    untyped = dict.fromkeys(program.inputs)  # such as the angles of a model that has none
    operators = {**plain_operators(), **fused_operators()}
    found = run(replace(program, outputs=tuple(results)), operators, untyped | given)
    called = {prime: name for name, prime in sizes.items()}
    return dict(program.types) | {
        name: TensorType(
            dtype=str(result.dtype).removeprefix("torch."),
            shape=tuple(called.get(size, str(size)) for size in result.shape),
        )
        for name, result in zip(results, found, strict=True)
        if isinstance(result, Tensor)
    }


def _free_primes(program: Program) -> list[int]:
    """Those that no fixed size of the program is."""
    fixed = {size for of in program.types.values() for size in of.shape}
    return [prime for prime in _PRIMES if str(prime) not in fixed]
