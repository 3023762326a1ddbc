"""A plan on a GPU: contexts, addresses, slots. Complete, and not executed yet: see `runtime.py`."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from builders.errors import EngineError
from builders.trt.attention import UPDATED
from builders.trt.logger import new_logger
from builders.trt.net import reason, torch_dtype

PREFILL, DECODE = range(2)
"""The profiles, in the order of `network.profiles_of`."""


class DeviceExecutor:
    """One plan with its weights and slots on the current CUDA device.

    `tensors` holds, by the network's names, what a plan without weights is given; they stay where they
    are and are read in place.
    """

    def __init__(
        self,
        trt: Any,
        plan: memoryview,
        tensors: Mapping[str, Tensor],
        *,
        runtime_cache: bytes = b"",
        device: str = "cuda",
    ) -> None:
        logger, self._log = new_logger(trt)
        self._trt, self._runtime, self._device = trt, trt.Runtime(logger), device
        self._engine = self._made(self._runtime.deserialize_cuda_engine(plan), "deserialize the plan")
        self._stream = torch.cuda.Stream()
        self._buffers: dict[str, Tensor] = {}
        for name in (*self._names("INPUT"), *self._names("OUTPUT")):
            self._buffers[name] = self._buffer(name, tensors)
        self._caches = {name: b for name, b in self._buffers.items() if name.startswith("cache.")}
        (self._output,) = (name for name in self._names("OUTPUT") if name not in self._caches)
        self._config = self._runtime_config(runtime_cache)
        self._contexts = [self._context(profile) for profile in (PREFILL, DECODE)]
        self._bound: list[tuple[int, dict[str, tuple[int, ...]]]] = [(0, {}), (0, {})]

    def run(self, first_slot: int, inputs: Mapping[str, Tensor]) -> Tensor:
        """Copy the inputs to their places, execute, give the output."""
        batch, tokens = inputs["positions"].shape
        profile = PREFILL if tokens > 1 else DECODE
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for name, value in inputs.items():
                if name in self._buffers:
                    _front(self._buffers[name], value.shape).copy_(value, non_blocking=True)
            self._set_shapes(profile, batch, inputs)
            self._set_slots(profile, first_slot)
            context = self._contexts[profile]
            self._done(context.execute_async_v3(self._stream.cuda_stream), "execute")
        torch.cuda.current_stream().wait_stream(self._stream)
        return _front(self._buffers[self._output], tuple(context.get_tensor_shape(self._output)))

    def copy_slot(self, source: int, target: int) -> None:
        """On the plan's stream, after what it still writes."""
        with torch.cuda.stream(self._stream):
            for cache in self._caches.values():
                cache[target].copy_(cache[source])

    def set_communicator(self, communicator: Any) -> None:
        """The tensor parallel group, a cupy.cuda.nccl.NcclCommunicator; every rank of it must call this."""
        new_capsule = ctypes.pythonapi.PyCapsule_New
        new_capsule.restype, new_capsule.argtypes = (
            ctypes.py_object,
            [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
        )
        for context in self._contexts:
            capsule = new_capsule(communicator.comm, None, None)
            self._done(context.set_communicator(capsule), "join the ranks")

    def runtime_cache(self) -> bytes:
        """What TensorRT-RTX compiled for this GPU: given to the next start, it need not again."""
        cache = self._config and getattr(self._config, "get_runtime_cache", lambda: None)()
        return bytes(cache.serialize()) if cache else b""

    def _names(self, mode: str) -> Iterable[str]:
        """Inputs or outputs."""
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            if self._engine.get_tensor_mode(name).name == mode:
                yield name

    def _buffer(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """As large as any step needs; an updated cache is the cache itself."""
        if name in tensors:
            return tensors[name]
        if name.endswith(UPDATED):
            return self._buffers[name.removesuffix(UPDATED)]
        largest = [self._largest(name, profile) for profile in (PREFILL, DECODE)]
        shape = [max(sizes) for sizes in zip(*largest, strict=True)]
        dtype = torch_dtype(self._trt, self._engine.get_tensor_dtype(name))
        # A slot that was never written is read under a mask, where NaN would survive.
        return torch.zeros(shape, dtype=dtype, device=self._device)

    def _largest(self, name: str, profile: int) -> tuple[int, ...]:
        if self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT:
            return tuple(self._engine.get_tensor_profile_shape(name, profile)[2])
        sizes = self._engine.get_tensor_profile_shape("positions", profile)[2]
        named = tuple(self._engine.get_tensor_shape(name))
        return tuple(sizes[axis] if size == -1 else size for axis, size in enumerate(named))

    def _runtime_config(self, runtime_cache: bytes) -> Any:
        """Only TensorRT-RTX compiles at run time and has a cache of that."""
        if not hasattr(self._engine, "create_runtime_config"):
            return None
        config = self._engine.create_runtime_config()
        if hasattr(config, "create_runtime_cache"):
            cache = config.create_runtime_cache()
            if runtime_cache:
                cache.deserialize(runtime_cache)
            config.set_runtime_cache(cache)
        return config

    def _context(self, profile: int) -> Any:
        """Every address is bound here, but for those of slots in the middle."""
        made = self._engine.create_execution_context(*([self._config] if self._config else []))
        context = self._made(made, "make an execution context")
        self._done(
            context.set_optimization_profile_async(profile, self._stream.cuda_stream), "choose a profile"
        )
        self._stream.synchronize()
        for name, buffer in self._buffers.items():
            self._done(context.set_tensor_address(name, buffer.data_ptr()), f"bind {name}")
        return context

    def _set_shapes(self, profile: int, batch: int, inputs: Mapping[str, Tensor]) -> None:
        _slot, known = self._bound[profile]
        caches = {name: (batch, *cache.shape[1:]) for name, cache in self._caches.items()}
        for name, shape in {**{n: tuple(v.shape) for n, v in inputs.items()}, **caches}.items():
            is_input = name in self._buffers and not name.endswith(UPDATED)
            if is_input and known.get(name) != shape:
                self._done(self._contexts[profile].set_input_shape(name, shape), f"set the shape of {name}")
                known[name] = shape

    def _set_slots(self, profile: int, first_slot: int) -> None:
        """An execution's slots lie one after another: their first byte is the cache's address."""
        bound, known = self._bound[profile]
        if bound == first_slot:
            return
        for name, cache in self._caches.items():
            address = cache[first_slot].data_ptr()
            self._done(self._contexts[profile].set_tensor_address(name, address), f"bind {name}")
        self._bound[profile] = (first_slot, known)

    def _made(self, made: Any, what: str) -> Any:
        if made is None:
            raise EngineError(f"TensorRT cannot {what}: {reason(self._log)}")
        return made

    def _done(self, done: bool, what: str) -> None:
        if not done:
            raise EngineError(f"TensorRT cannot {what}: {reason(self._log)}")


def _front(buffer: Tensor, shape: Iterable[int]) -> Tensor:
    """The beginning of a buffer, as a dense tensor of a smaller shape."""
    size = tuple(shape)
    return buffer.view(-1)[: torch.Size(size).numel()].view(size)
