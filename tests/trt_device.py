"""TensorRT's runtime and CUDA's streams, as far as `builders/trt/device.py` uses them, on the CPU.

A context reads and writes what lies at the addresses it was given, with the shapes it was told, and
refuses what TensorRT refuses: an address or a shape that is missing, outside the profile, or unaligned.
"""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from builders.trt.build import _shape
from builders.trt.net import DTYPES
from builders.trt.network import Network
from tests.sim import Member
from tests.trt_interpreter import Interpreter


class Stream:
    cuda_stream = 7

    def wait_stream(self, _other: Stream) -> None: ...

    def synchronize(self) -> None: ...


def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that do nothing: everything happens when it is asked for."""
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)


class Library:
    """What `trt.` gives; a plan is the network itself."""

    def __init__(self, trt: Any, network: Network, member: Member) -> None:
        self._trt, self.engine = trt, Engine(trt, network, member)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trt, name)

    def Runtime(self, _logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda _plan: self.engine)


class Engine:
    def __init__(self, trt: Any, network: Network, member: Member) -> None:
        self._trt, self.network = trt, network
        self.interpreter = Interpreter(network.definition, member)
        definition = network.definition
        self.inputs = {t.name: t for t in map(definition.get_input, range(definition.num_inputs))}
        self.outputs = {t.name: t for t in map(definition.get_output, range(definition.num_outputs))}
        self.contexts: list[Context] = []

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._trt.TensorIOMode.INPUT if name in self.inputs else self._trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self.tensor(name).dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensor(name).shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        sizes = self.network.profiles[profile]
        tensor = self.inputs[name]
        return [_shape(tensor, size) for size in (sizes.smallest, sizes.usual, sizes.largest)]

    def create_execution_context(self) -> Context:
        self.contexts.append(Context(self))
        return self.contexts[-1]

    def tensor(self, name: str) -> Any:
        return {**self.inputs, **self.outputs}[name]

    def torch_dtype(self, name: str) -> torch.dtype:
        (found,) = (d for d, known in DTYPES.items() if getattr(self._trt, known) == self.tensor(name).dtype)
        return found


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine, self._profile = engine, 0
        self.addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._output_shapes: dict[str, tuple[int, ...]] = {}
        self.communicator: Any = None

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self._profile = profile
        return stream == Stream.cuda_stream

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        given = name in self._engine.network.weight_inputs
        return given or not name.startswith("cache.") or address % 64 == 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _usual, largest = self._engine.get_tensor_profile_shape(name, self._profile)
        self._shapes[name] = shape
        return all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True))

    def set_communicator(self, communicator: Any) -> bool:
        self.communicator = communicator
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._output_shapes[name]

    def execute_async_v3(self, _stream: int) -> bool:
        inputs = {name: self._at(name, self._shape(name)).clone() for name in self._engine.inputs}
        outputs = self._engine.interpreter.run(inputs)
        self._output_shapes = {name: tuple(value.shape) for name, value in outputs.items()}
        for name, value in outputs.items():
            self._at(name, tuple(value.shape)).copy_(value)
        return True

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = self._engine.get_tensor_shape(name)
        return self._shapes[name] if -1 in shape else shape

    def _at(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The memory at a tensor's address."""
        dtype, count = self._engine.torch_dtype(name), torch.Size(shape).numel()
        memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(self.addresses[name])
        return torch.frombuffer(memory, dtype=dtype).view(shape)
