"""What the driver is told, as far as it can be seen without a device."""

from __future__ import annotations

import ctypes
import struct

import pytest
import torch

from builders.kernels.call import Call, Config, Source
from builders.kernels.driver import Compiled, Kernels, MissingKernel, _addresses, _launch_config, _value


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
        kinds[kind].from_address(address).value
        for kind, address in zip(layout, _addresses(layout, buffer), strict=True)
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
