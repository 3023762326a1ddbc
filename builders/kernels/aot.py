"""Compiling kernels ahead of time, for any CUDA device, on a machine with or without one."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

from builders.errors import EngineError
from builders.kernels.call import Source
from builders.kernels.driver import Compiled

SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
"""What one program may have of the memory that its threads share, by compute capability."""


class KernelTooLarge(EngineError):
    """A candidate needs more than the device has."""


def compile_source(source: Source, capability: int) -> Compiled:
    """The machine code of a kernel; raises KernelTooLarge where it does not fit."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    if source.overlap and capability < 90:
        raise ValueError(f"overlap on compute capability {capability}: needs 90 or later")
    # Paths of this machine have no place in an engine.
    triton.knobs.compilation.disable_line_info = True
    function = find(source.kernel)
    signature, constants, attributes = _typed(function.arg_names, source)
    source_of = GluonASTSource if function.is_gluon() else ASTSource
    built: Any = triton.compile(
        source_of(function, signature, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={
            "num_warps": source.warps,
            "num_stages": source.stages,
            "launch_pdl": source.overlap,
        },
    )
    _check(built, source, capability)
    return Compiled(
        source=source,
        capability=capability,
        code=built.asm["cubin"],
        name=built.metadata.name,
        shared_bytes=built.metadata.shared,
        scratch_bytes=built.metadata.global_scratch_size,
    )


def _check(built: Any, source: Source, capability: int) -> None:
    what = f"{source.kernel} {dict(source.constants)}"
    shared, limit = built.metadata.shared, SHARED_BYTES[capability]
    if shared > limit:
        raise KernelTooLarge(
            f"{what}: needs {shared} bytes of shared memory, compute capability {capability} has {limit}"
        )
    # What a launch gives: the arguments that are there, and two pointers to scratch memory.
    given = sum(map(bool, source.kinds)) + 2
    taken = built.asm["ptx"].split(".visible .entry")[1].count("\t.param ")
    if given != taken:
        raise RuntimeError(f"{what}: this Triton's kernels take {taken} parameters, launches give {given}")


def find(kernel: str) -> Any:
    """The Triton function of `file.function`."""
    file, function = kernel.split(".")
    return getattr(importlib.import_module(f"builders.kernels.{file}_kernel"), function)


def _typed(
    names: Iterable[str], source: Source
) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int, ...], list[list[Any]]]]:
    """Triton's signature, constants and what it may assume: that pointers are multiples of 16 bytes."""
    constants: dict[str, Any] = dict(source.constants)
    signature: dict[str, str] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for place, name in enumerate(names):
        kind = source.kinds[place] if place < len(source.kinds) else ""
        signature[name] = kind or "constexpr"
        if not kind:
            constants.setdefault(name, None)
        if kind.startswith("*"):
            attributes[(place,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes
