"""What the driver is told, as far as it can be seen without a device."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from builders.kernels.call import Call, Config, Move, Source
from builders.kernels.driver import (
    Compiled,
    Device,
    Kernels,
    LoadedKernel,
    MissingKernel,
    RepeatedLaunch,
    _launch_config,
    _places,
    _value,
)


def compiled(*, overlap: bool) -> Compiled:
    source = Source(kernel="k.k", kinds=("*bf16",), constants=(), warps=8, stages=1, overlap=overlap)
    return Compiled(source=source, capability=90, code=b"", name="k", shared_bytes=100, scratch_bytes=0)


@pytest.mark.parametrize("layout", ["Q", "QifQ", "iQfQQ", "ifiQ"])
def test_the_driver_finds_each_argument(layout: str) -> None:
    values = [3 + place for place in range(len(layout))]
    packed = struct.Struct(layout)
    buffer = ctypes.create_string_buffer(packed.size)
    packed.pack_into(buffer, 0, *values)
    kinds = {"Q": ctypes.c_uint64, "i": ctypes.c_int32, "f": ctypes.c_float}
    found = [
        kinds[kind].from_buffer(buffer, place).value
        for kind, place in zip(layout, _places(layout), strict=True)
    ]
    assert found == values


def test_launches_are_laid_out_as_the_driver_has_them() -> None:
    config = _launch_config(compiled(overlap=True))
    assert ctypes.sizeof(config) == 56
    assert ctypes.sizeof(config.attributes.contents) == 72
    assert (config.block_x, config.shared_bytes, config.num_attributes) == (256, 100, 1)
    assert (config.attributes.contents.kind, config.attributes.contents.value) == (6, 1)
    assert _launch_config(compiled(overlap=False)).num_attributes == 0


def test_addresses_must_be_as_the_compiler_was_told() -> None:
    x = torch.zeros(32)
    assert _value(x[4:]) == x.data_ptr() + 16
    with pytest.raises(ValueError, match="kernels need addresses in steps of 16"):
        _value(x[1:])


def test_a_kernel_that_was_not_compiled_is_named() -> None:
    call = Call(kernel="k.k", args=(), constants=(("N", 3),), grid=(1, 1, 1), config=Config(blocks={}))
    with pytest.raises(MissingKernel, match=r"k.k {'N': 3}: not among"):
        Kernels([compiled(overlap=False)]).run([call])


LAYOUT = {"*bf16": ctypes.c_uint64, "*i64": ctypes.c_uint64, "i32": ctypes.c_int32, "fp32": ctypes.c_float}


class Absent(Device):
    """No device: notes what the driver is told."""

    def __init__(self, kinds: Sequence[str]) -> None:
        self.driver, self.told, self._kinds = self, list[tuple[object, ...]](), kinds

    def function(self, compiled: Compiled) -> ctypes.c_void_p:
        return ctypes.c_void_p(77)

    def stream(self) -> int:
        return 5 + len(self.told)

    def cuLaunchKernelEx(self, config: Any, function: Any, params: Any, extra: None) -> int:
        one = config._obj
        values = [LAYOUT[kind].from_address(at).value for kind, at in zip(self._kinds, params, strict=False)]
        assert [ctypes.c_uint64.from_address(at).value for at in params[-2:]] == [0, 0], "scratch memory"
        sizes = (one.grid_x, one.grid_y, one.grid_z, one.block_x, one.shared_bytes, one.stream)
        self.told.append((function.value, *sizes, *values))
        return 0


def test_a_repeated_launch_is_the_launch_with_other_tensors() -> None:
    kinds = ("*bf16", "i32", "", "*i64", "fp32", "*bf16")
    source = Source(kernel="k.k", kinds=kinds, constants=(), warps=8, stages=1, overlap=True)
    device = Absent([kind for kind in kinds if kind])
    kernel = LoadedKernel(replace(compiled(overlap=True), source=source), device)
    x, ids, last = torch.zeros(64).bfloat16(), torch.zeros(64).long(), torch.zeros(64).bfloat16()
    args = (x, 9, None, ids, 0.5, last)
    call = Call(kernel="k.k", args=args, constants=(), grid=(3, 2, 1), config=Config(blocks={}))
    again = RepeatedLaunch(kernel, call, [Move(0, "x", 0), Move(3, "ids", 16)])
    for _ in range(2):
        other, others = torch.zeros(64).bfloat16(), torch.zeros(64).long()
        again({"x": other, "ids": others})
        kernel.launch((3, 2, 1), (other, 9, None, others[2:], 0.5, last))
        repeated, launched = device.told[-2:]
        assert repeated[:6] == launched[:6] == (77, 3, 2, 1, 256, 100)
        assert (
            repeated[7:]
            == launched[7:]
            == (other.data_ptr(), 9, others.data_ptr() + 16, 0.5, last.data_ptr())
        )
    assert [told[6] for told in device.told] == [5, 6, 7, 8], "the stream that is the current one"
    with pytest.raises(ValueError, match="kernels need addresses in steps of 16"):
        again({"x": other[1:], "ids": others})
