"""Compiled kernels and their launch through the CUDA driver; no compiler is imported."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from builders.errors import EngineError
from builders.kernels.call import Arg, Call, Move, Repeat, Source

_DEFAULT_SHARED_BYTES = 48 << 10
_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_OVERLAPPED = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION


class DriverError(EngineError):
    """The CUDA driver refused a call."""


class MissingKernel(EngineError):
    """A launch needs a kernel that was not compiled for this engine."""


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """One kernel's machine code and what its launch must know."""

    source: Source
    capability: int
    code: bytes
    """A cubin."""
    name: str
    shared_bytes: int
    scratch_bytes: int
    """Of global memory for each program; none of our kernels needs any."""


class Device:
    """The current device: its driver, and where its work goes."""

    def __init__(self) -> None:
        torch.zeros(1, device="cuda")  # makes PyTorch's context the current one of this thread
        self.driver, self._number = _driver(), torch.cuda.current_device()

    def function(self, compiled: Compiled) -> ctypes.c_void_p:
        """A kernel's, loaded."""
        return _function(self.driver, compiled)

    def stream(self) -> int:
        """PyTorch's current one, captured or not."""
        return torch._C._cuda_getCurrentRawStream(self._number)


class Kernels:
    """Compiled kernels, loaded on the current device on their first launch."""

    def __init__(self, compiled: Iterable[Compiled], device: Callable[[], Device] = Device) -> None:
        self._compiled = {kernel.source: kernel for kernel in compiled}
        self._device = device
        self._loaded: dict[Source, LoadedKernel] = {}

    def run(self, calls: Iterable[Call]) -> None:
        """Launch in order on PyTorch's current stream."""
        for call in calls:
            self.loaded(call.source).launch(call.grid, call.args)

    def repeat(self, call: Call, moves: Sequence[Move]) -> Repeat:
        """See `builders.kernels.call.Repeater`."""
        return RepeatedLaunch(self.loaded(call.source), call, moves)

    def loaded(self, source: Source) -> LoadedKernel:
        """The kernel of a source; an engine that runs one often keeps it."""
        found = self._loaded.get(source)
        if found is None:
            if source not in self._compiled:
                raise MissingKernel(
                    f"{source.kernel} {dict(source.constants)}: not among the compiled kernels"
                )
            found = self._loaded[source] = LoadedKernel(self._compiled[source], self._device())
        return found


class LoadedKernel:
    """A kernel on the current device."""

    def __init__(self, compiled: Compiled, device: Device | None = None) -> None:
        if compiled.scratch_bytes:
            raise DriverError(f"{compiled.name}: needs global scratch memory, which no launch here gives")
        self.compiled, self.device = compiled, device or Device()
        self.function = self.device.function(compiled)
        self._lock, self._start = threading.Lock(), Start(self)

    def launch(self, grid: tuple[int, int, int], args: Iterable[Arg]) -> None:
        """Start on PyTorch's current stream, captured or not; a None was compiled in."""
        values = [_value(arg) for arg in args if arg is not None]
        with self._lock:  # the driver copies the values before it returns
            self._start.set(grid, values)
            self._start()


class Start:
    """What the driver is told to start a kernel, in memory that is used again."""

    def __init__(self, kernel: LoadedKernel) -> None:
        compiled, self._device = kernel.compiled, kernel.device
        # Triton's kernels end with two pointers to scratch memory, null where they need none.
        layout = "".join(_FORMATS.get(kind, "Q") for kind in compiled.source.kinds if kind) + "QQ"
        self._packed = struct.Struct(layout)
        self.words = (ctypes.c_uint64 * (self._packed.size // 8))()
        self.places = _places(layout)
        """Of the values, in bytes."""
        base = ctypes.addressof(self.words)
        self._params = (ctypes.c_void_p * len(layout))(*(base + place for place in self.places))
        self._config = _launch_config(compiled)
        self._launch = self._device.driver.cuLaunchKernelEx
        self._given = ctypes.byref(self._config), kernel.function, self._params, None

    def set(self, grid: tuple[int, int, int], values: Iterable[int | float]) -> None:
        """All that is not the stream."""
        self._packed.pack_into(self.words, 0, *values, 0, 0)
        self._config.grid_x, self._config.grid_y, self._config.grid_z = grid

    def __call__(self) -> None:
        self._config.stream = self._device.stream()
        if code := self._launch(*self._given):
            _check(self._device.driver, code)


class RepeatedLaunch:
    """A launch that was made before; all that is new are the addresses of some tensors."""

    def __init__(self, kernel: LoadedKernel, call: Call, moves: Sequence[Move]) -> None:
        self._start = Start(kernel)
        self._start.set(call.grid, [_value(arg) for arg in call.args if arg is not None])
        given = [number for number, arg in enumerate(call.args) if arg is not None]
        words = {number: place // 8 for number, place in zip(given, self._start.places, strict=False)}
        self._words = self._start.words
        self._moves = [(words[move.arg], move.value, move.offset) for move in moves]

    def __call__(self, values: Mapping[str, Tensor]) -> None:
        for word, name, offset in self._moves:
            address = values[name].data_ptr() + offset
            if address % 16:
                raise _misplaced(values[name], address)
            self._words[word] = address
        self._start()


_FORMATS = {"i32": "i", "fp32": "f"}


def _value(arg: Tensor | int | float) -> int | float:
    if not isinstance(arg, Tensor):
        return arg
    address = arg.data_ptr()
    if address % 16:
        raise _misplaced(arg, address)
    return address


def _misplaced(x: Tensor, address: int) -> ValueError:
    return ValueError(f"tensor {tuple(x.shape)} at {address:#x}: kernels need addresses in steps of 16")


def _places(layout: str) -> list[int]:
    """Where each value of a packed buffer begins."""
    ends = [struct.calcsize(layout[: place + 1]) for place in range(len(layout))]
    return [end - struct.calcsize(kind) for end, kind in zip(ends, layout, strict=True)]


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: a union of 64 bytes after its kind, at a multiple of 8."""

    _fields_ = (
        ("kind", ctypes.c_uint),
        ("_pad", ctypes.c_uint),
        ("value", ctypes.c_int),
        ("_rest", ctypes.c_char * 60),
    )


class _LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        *((name, ctypes.c_uint) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z")),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("num_attributes", ctypes.c_uint),
    )


def _launch_config(compiled: Compiled) -> _LaunchConfig:
    source = compiled.source
    overlap = _Attribute(kind=_OVERLAPPED, value=1)
    return _LaunchConfig(
        block_x=32 * source.warps,
        block_y=1,
        block_z=1,
        shared_bytes=compiled.shared_bytes,
        attributes=ctypes.pointer(overlap),
        num_attributes=int(source.overlap),
    )


@cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _function(driver: Any, compiled: Compiled) -> ctypes.c_void_p:
    """Load the code; the module stays with the process."""
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    _check(driver, driver.cuModuleLoadData(ctypes.byref(module), compiled.code))
    _check(driver, driver.cuModuleGetFunction(ctypes.byref(function), module, compiled.name.encode()))
    if compiled.shared_bytes > _DEFAULT_SHARED_BYTES:
        code = driver.cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED, compiled.shared_bytes)
        _check(driver, code)
    return function


def _check(driver: Any, code: int) -> None:
    if code:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(code, ctypes.byref(text))
        raise DriverError(f"CUDA driver error {code}: {(text.value or b'unknown').decode()}")
