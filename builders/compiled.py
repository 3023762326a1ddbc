"""Programs compiled ahead of time for the CPU: a shared library that takes its weights as inputs."""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from builders import ops
from builders.ops import rotated
from builders.program import Program, TensorType, plain_operators, run

_EXAMPLE_SIZES = {"tokens": 5, "batch": 3, "table": 2, "blocks": 7, "wanted": 4}
"""Any sizes do, as long as they differ: equal ones would be taken for one."""


_SETTINGS = {"cpp.dynamic_threads": True, "cpp.threads": 8, "aot_inductor.package": True}
"""The number of threads is that of the process that runs the program. The one that compiles it may be a
worker with a single one: which loops are worth several threads is decided for eight, wherever that is."""


def compile_program(program: Program, file: Path) -> None:
    """Write the compiled package; it holds neither weights nor constants, nor the source.

    To that the compiler adds how it was called, once more whenever its cache has it already: the same program
    would be other bytes.
    """
    from torch._inductor.package import package_aoti  # type: ignore[attr-defined]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler warns of its own deprecated calls
        exported = _exported(program)
        made: Any = torch._inductor.aot_compile(  # type: ignore[attr-defined]
            exported.module(check_guards=False), *exported.example_inputs, options=_SETTINGS
        )
        package_aoti(str(file), [part for part in made if not str(part).endswith(".cpp")])


def _exported(program: Program) -> ExportedProgram:
    sizes = {name: Dim(name) for name in _EXAMPLE_SIZES}
    examples = {name: _example(program.types[name]) for name in tensors_of(program)}
    dims = {name: _dims(program.types[name], sizes) for name in examples}
    return export(_Interpreted(program), (examples,), dynamic_shapes=(dims,), strict=False)


def tensors_of(program: Program) -> list[str]:
    """The tensors a compiled program is given: by name, as a program read back may list them otherwise."""
    names = (*program.inputs, *program.weights, *program.constants)
    return sorted(name for name in names if name in program.types)


def _example(kind: TensorType) -> Tensor:
    shape = [_EXAMPLE_SIZES.get(size) or int(size) for size in kind.shape]
    return torch.zeros(shape, dtype=getattr(torch, kind.dtype))


def _dims(kind: TensorType, sizes: Mapping[str, Any]) -> dict[int, Any] | None:
    return {axis: sizes[size] for axis, size in enumerate(kind.shape) if size in sizes} or None


class _Interpreted(nn.Module):
    """A program as a module, for the compiler to trace."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self._program = program
        # A compiler fuses the rotation with its neighbours; as one operator it could not.
        self._operators = {**plain_operators(), "rankforge.rotate": rotated}

    def forward(self, values: dict[str, Tensor]) -> list[Tensor]:
        absent = dict.fromkeys(self._program.inputs)
        return run(self._program, self._operators, {**absent, **values})


def versions() -> Mapping[str, str]:
    """Of the libraries that decide what is compiled."""
    return {"torch": str(torch.__version__)}


def processor() -> str:
    """The instructions that code compiled here may use."""
    return f"{platform.machine()}/{torch.backends.cpu.get_cpu_capability()}"


@cache
def compiler_hash() -> str:
    """Of what is compiled in beside a program: our operators' text, and the settings here."""
    return hashlib.sha256(Path(ops.__file__).read_bytes() + Path(__file__).read_bytes()).hexdigest()


class CompiledProgram:
    """A package, loaded without a compiler; one serves every layer of its structure."""

    def __init__(self, program: Program, file: Path) -> None:
        self._names = tensors_of(program)
        loader = torch._C._aoti.AOTIModelPackageLoader  # type: ignore[attr-defined]
        self._loader = loader(str(file), "model", False, 1, -1)

    def __call__(self, bound: Mapping[str, Any]) -> list[Tensor]:
        return self._loader.run([bound[name] for name in self._names])  # type: ignore[no-any-return]
