"""Processes of their own for Triton: its interpreter and its compiler cannot share one, nor touch other tests."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from typing import Any

from torch import Tensor

from builders.kernels.aot import KernelTooLarge, compile_source, find
from builders.kernels.call import Call, Source


def pool(*, interpreted: bool) -> ProcessPoolExecutor:
    """One process that interprets kernels, or compiles them."""
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=_start, initargs=(interpreted,))


def _start(interpreted: bool) -> None:
    if interpreted:
        os.environ["TRITON_INTERPRET"] = "1"
        _mend_interpreter()


def _mend_interpreter() -> None:
    """NumPy 2.4 refuses the way in which Triton 3.6 takes a loop's bound out of an array."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


def interpret(workers: ProcessPoolExecutor, calls: Iterable[Call]) -> None:
    """Execute launches on CPU tensors, which are written as on a device."""
    calls = list(calls)
    for call, args in zip(calls, workers.submit(_interpret, calls).result(), strict=True):
        for ours, theirs in zip(call.args, args, strict=True):
            if isinstance(ours, Tensor):
                ours.copy_(theirs)


def _interpret(calls: list[Call]) -> list[tuple[object, ...]]:
    for call in calls:
        find(call.kernel)[call.grid](*call.args, **dict(call.constants))
    return [call.args for call in calls]


def compiles(source: Source, capability: int) -> str:
    """What became of compiling it: "" or why not."""
    try:
        built = compile_source(source, capability)
    except KernelTooLarge:
        return "too large"
    return "" if built.code[:4] == b"\x7fELF" and not built.scratch_bytes else "not what a launch can use"
