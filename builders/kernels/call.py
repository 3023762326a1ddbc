"""A kernel launch as plain data: what to compile, and what to launch it with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

Constant = bool | int | float | str
Arg = Tensor | int | float | None

_POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
    torch.float8_e4m3fn: "*fp8e4nv",
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """One candidate of a kernel: how its work is cut."""

    blocks: Mapping[str, int]
    """The kernel's own sizes, by the name of its constant."""
    warps: int = 4
    stages: int = 3
    """Depth of the compiler's software pipeline."""
    overlap: bool = False
    """Start while the kernel before is ending (Hopper and later)."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What one compiled kernel is compiled from; equal sources share it."""

    kernel: str
    """`file.function`, of the file's `_kernel.py`."""
    kinds: tuple[str, ...]
    """Of each argument: a Triton type, or "" for None."""
    constants: tuple[tuple[str, Constant], ...]
    warps: int
    stages: int
    overlap: bool

    def to_json(self) -> dict[str, Any]:
        """Plain data, for a manifest."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Source:
        """The inverse of `to_json`."""
        constants = tuple((name, value) for name, value in data["constants"])
        return Source(**{**data, "kinds": tuple(data["kinds"]), "constants": constants})


@dataclass(frozen=True, kw_only=True)
class Call:
    """One launch. Made from tensors on the meta device, it says what to compile without a GPU."""

    kernel: str
    args: tuple[Arg, ...]
    """In the order of the kernel's parameters, which come before its constants."""
    constants: tuple[tuple[str, Constant], ...]
    grid: tuple[int, int, int]
    config: Config

    @cached_property
    def source(self) -> Source:
        """What this launch needs compiled."""
        return Source(
            kernel=self.kernel,
            kinds=tuple(_kind(arg) for arg in self.args),
            constants=self.constants,
            warps=self.config.warps,
            stages=self.config.stages,
            overlap=self.config.overlap,
        )


Runner = Callable[[Iterable[Call]], None]
"""Executes launches in order: the driver on a GPU, Triton's interpreter in tests."""


@dataclass(frozen=True)
class Move:
    """An argument of a launch that lies elsewhere when the launch is repeated."""

    arg: int
    """Which of the call's."""
    value: str
    """The name of the tensor that it is, or is a part of."""
    offset: int
    """Bytes from that tensor's first."""


Repeat = Callable[[Mapping[str, Tensor]], None]
"""Executes a launch again, with these tensors for those of the same names."""

Repeater = Callable[[Call, Sequence[Move]], Repeat]
"""Makes a launch ready to be repeated: cheaper than to describe it anew every time."""


def call(
    kernel: str,
    args: tuple[Arg, ...],
    constants: Mapping[str, Constant],
    grid: tuple[int, ...],
    config: Config,
) -> Call:
    """A launch whose constants are the given ones and the config's."""
    every = {**constants, **config.blocks, "OVERLAP": config.overlap}
    wide = (*grid, 1, 1)
    return Call(
        kernel=kernel,
        args=args,
        constants=tuple(sorted(every.items())),  # their order means nothing, and JSON loses it
        grid=(wide[0], wide[1], wide[2]),
        config=config,
    )


def _kind(arg: Arg) -> str:
    if arg is None:
        return ""
    if isinstance(arg, Tensor):
        return _POINTERS[arg.dtype]
    return "fp32" if isinstance(arg, float) else "i32"


def power_of_two(size: int) -> int:
    """The smallest that is not below `size`."""
    return 1 << (size - 1).bit_length()


def cdiv(size: int, part: int) -> int:
    """How many parts cover a size."""
    return -(-size // part)
