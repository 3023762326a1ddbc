"""Processes of their own for Triton: its interpreter and compiler cannot share one, nor touch other tests."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from builders.kernels.aot import KernelTooLarge, compile_source, find
from builders.kernels.call import Arg, Call, Source
from builders.kernels.driver import Kernels


def pool(*, interpreted: bool, cache: Path | None = None) -> ProcessPoolExecutor:
    """One process that interprets kernels, or compiles them, and finds none compiled before."""
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=_start, initargs=(interpreted, cache))


def _start(interpreted: bool, cache: Path | None) -> None:
    torch.set_num_threads(1)
    if cache:
        os.environ["TRITON_CACHE_DIR"] = str(cache)
    if interpreted:
        os.environ["TRITON_INTERPRET"] = "1"
        _mend_interpreter()


def _mend_interpreter() -> None:
    """Triton interprets with NumPy, which has no bfloat16: it cuts where a device rounds, and multiplies
    matrices of bits. And NumPy 2.4 refuses the way in which it takes a loop's bound out of an array.
    """
    from triton.runtime import interpreter

    patch, dot = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def wide_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return dot(self, _wide(a), _wide(b), *others)

    interpreter._patch_lang_tensor = patched
    interpreter._convert_float = _converted
    interpreter.InterpreterBuilder.create_dot = wide_dot


def _wide(operand: Any) -> Any:
    """A matrix of the interpreter in float32 where it is in bfloat16."""
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    if operand.dtype.scalar != tl.bfloat16:
        return operand
    return TensorHandle(_converted(operand.data, tl.bfloat16, tl.float32, None).view("float32"), tl.float32)


def _converted(data: Any, source: Any, target: Any, _rounding: object) -> Any:
    """Bits of one floating-point type as bits of another, rounded to nearest even."""
    bits = torch.from_numpy(data.copy().view(f"int{source.primitive_bitwidth}"))
    result = bits.view(_DTYPES[source.name]).to(_DTYPES[target.name])
    return result.view(_INTEGERS[result.itemsize]).numpy().view(f"uint{target.primitive_bitwidth}")


_DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "fp8e4nv": torch.float8_e4m3fn,
}
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def interpret(workers: ProcessPoolExecutor, calls: Iterable[Call]) -> None:
    """Execute launches on CPU tensors, which are written as on a device."""
    calls = list(calls)
    for call, args in zip(calls, workers.submit(interpret_here, calls).result(), strict=True):
        for ours, theirs in zip(call.args, args, strict=True):
            if isinstance(ours, Tensor):
                ours.copy_(theirs)


def interpret_here(calls: list[Call]) -> list[tuple[object, ...]]:
    """In the process of such workers."""
    for call in calls:
        find(call.kernel)[call.grid](*call.args, **dict(call.constants))
    return [call.args for call in calls]


def launch(workers: ProcessPoolExecutor, calls: Iterable[Call]) -> None:
    """Execute launches on the device, with copies of CPU tensors, which are written in the end."""
    calls = list(calls)
    major, minor = torch.cuda.get_device_capability()
    kernels = Kernels(
        workers.submit(compile_source, source, 10 * major + minor).result()
        for source in {call.source for call in calls}
    )
    storages = {
        arg.data_ptr() - arg.storage_offset() * arg.itemsize: arg.untyped_storage()
        for call in calls
        for arg in call.args
        if isinstance(arg, Tensor)
    }
    copies = {address: storage.cuda() for address, storage in storages.items()}
    kernels.run(replace(call, args=tuple(_moved(arg, copies) for arg in call.args)) for call in calls)
    for address, storage in storages.items():
        storage.copy_(copies[address])


def _moved(arg: Arg, copies: Mapping[int, torch.UntypedStorage]) -> Arg:
    """The same part of a copied storage."""
    if not isinstance(arg, Tensor):
        return arg
    copy = copies[arg.data_ptr() - arg.storage_offset() * arg.itemsize]
    empty = torch.empty(0, dtype=arg.dtype, device="cuda")
    return empty.set_(copy, arg.storage_offset(), arg.shape, arg.stride())  # type: ignore[call-overload]


def compiles(source: Source, capability: int) -> str:
    """What became of compiling it: "" or why not."""
    try:
        built = compile_source(source, capability)
    except KernelTooLarge:
        return "too large"
    if built.code[:4] != b"\x7fELF" or built.name.encode() not in built.code:
        return "not machine code with this name"
    if b"_kernel.py" in built.code:
        return "names a file of this machine"
    return "needs memory that launches do not give" if built.scratch_bytes else ""
