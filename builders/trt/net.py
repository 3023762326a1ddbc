"""A network under construction: TensorRT's layers with PyTorch's broadcasting, scalars and names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from builders.errors import EngineError
from builders.trt.logger import Log

DTYPES = {
    torch.bool: "bool",
    torch.int8: "int8",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.float8_e4m3fn: "fp8",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
}
"""What TensorRT's modules call a dtype."""

_WIDTH = {torch.bool: 0, torch.int32: 1, torch.float16: 2, torch.bfloat16: 2, torch.float32: 3}
"""Two tensors of different dtypes meet in the wider one."""


def reason(log: Log) -> str:
    """What TensorRT complained of."""
    return "; ".join(log.errors) or "no reason given"


def torch_dtype(trt: Any, dtype: Any) -> torch.dtype:
    """PyTorch's name for one of TensorRT's."""
    (found,) = (known for known, name in DTYPES.items() if getattr(trt, name) == dtype)
    return found


class Net:
    """Wraps an INetworkDefinition; every method adds a layer and gives its first output."""

    def __init__(self, trt: Any, definition: Any, log: Log) -> None:
        self.trt, self.definition = trt, definition
        self.scope = ""
        """What is being lowered; the layers' names begin with it."""
        self.held: list[Tensor] = []
        """TensorRT refers to constants by address until the plan is built."""
        self._log = log
        self._scalars: dict[tuple[float, torch.dtype], Any] = {}

    def layer(self, kind: str, *args: Any) -> Any:
        """A layer by the name of its `add_` method; a refusal is an error with TensorRT's reason."""
        layer = getattr(self.definition, f"add_{kind}")(*args)
        if layer is None:
            raise EngineError(f"{self.scope}: TensorRT refuses {kind}: {reason(self._log)}")
        layer.name = f"{self.scope}/{kind}.{self.definition.num_layers}"
        return layer

    def add(self, kind: str, *args: Any) -> Any:
        return self.layer(kind, *args).get_output(0)

    def dtype(self, dtype: torch.dtype) -> Any:
        return getattr(self.trt, DTYPES[dtype])

    def torch_dtype(self, x: Any) -> torch.dtype:
        return torch_dtype(self.trt, x.dtype)

    def constant(self, value: Tensor) -> Any:
        """A tensor that becomes part of the plan; its memory is used as it is."""
        value = value.contiguous()
        self.held.append(value)
        weights = self.trt.Weights(self.dtype(value.dtype), value.data_ptr(), value.numel())
        return self.add("constant", tuple(value.shape), weights)

    def scalar(self, value: float, dtype: torch.dtype, rank: int) -> Any:
        """Stored in 32 bits: NumPy, and so whoever looks at the network, cannot read a bfloat16."""
        key = (value, dtype)
        if key not in self._scalars:
            stored = torch.float32 if dtype.is_floating_point else dtype
            self._scalars[key] = self.cast(self.constant(torch.tensor([value], dtype=stored)), dtype)
        return self.ranked(self._scalars[key], rank)

    def ranked(self, x: Any, rank: int) -> Any:
        """x with leading dimensions of one."""
        missing = rank - len(x.shape)
        return x if not missing else self.reshape(x, [*([1] * missing), *x.shape])

    def cast(self, x: Any, dtype: torch.dtype) -> Any:
        return x if x.dtype == self.dtype(dtype) else self.add("cast", x, self.dtype(dtype))

    def aligned(self, *values: Any) -> list[Any]:
        """Tensors and numbers as tensors of one rank and dtype, which TensorRT's broadcasting needs."""
        tensors = [value for value in values if not isinstance(value, int | float)]
        rank = max(len(tensor.shape) for tensor in tensors)
        dtype = max(map(self.torch_dtype, tensors), key=_WIDTH.__getitem__)
        if any(isinstance(value, float) for value in values) and not dtype.is_floating_point:
            dtype = torch.float32
        return [self._aligned(value, rank, dtype) for value in values]

    def _aligned(self, value: Any, rank: int, dtype: torch.dtype) -> Any:
        if isinstance(value, int | float):
            return self.scalar(value, dtype, rank)
        return self.ranked(self.cast(value, dtype), rank)

    def binary(self, operation: str, a: Any, b: Any) -> Any:
        a, b = self.aligned(a, b)
        return self.add("elementwise", a, b, getattr(self.trt.ElementWiseOperation, operation))

    def unary(self, operation: str, x: Any) -> Any:
        return self.add("unary", x, getattr(self.trt.UnaryOperation, operation))

    def activation(self, kind: str, x: Any) -> Any:
        return self.add("activation", x, getattr(self.trt.ActivationType, kind))

    def select(self, condition: Any, a: Any, b: Any) -> Any:
        a, b = self.aligned(a, b)
        rank = max(len(a.shape), len(condition.shape))
        return self.add("select", *(self.ranked(x, rank) for x in (condition, a, b)))

    def reduce(self, operation: str, x: Any, axis: int, *, keep: bool) -> Any:
        axes = 1 << axis % len(x.shape)
        return self.add("reduce", x, getattr(self.trt.ReduceOperation, operation), axes, keep)

    def reshape(self, x: Any, dims: Sequence[int]) -> Any:
        """At most one of the dimensions may be -1: what the others leave."""
        layer = self.layer("shuffle", x)
        layer.reshape_dims = tuple(dims)
        return layer.get_output(0)

    def transpose(self, x: Any, order: Sequence[int]) -> Any:
        layer = self.layer("shuffle", x)
        layer.first_transpose = tuple(order)
        return layer.get_output(0)

    def slice(self, x: Any, axis: int, start: int, length: int) -> Any:
        """Some of one dimension."""
        layer = self.layer("slice", x, (start,), (length,), (1,))
        layer.axes = (axis % len(x.shape),)
        return layer.get_output(0)

    def concat(self, parts: Sequence[Any], axis: int) -> Any:
        layer = self.layer("concatenation", list(parts))
        layer.axis = axis % len(parts[0].shape)
        return layer.get_output(0)

    def matmul(self, x: Any, weight: Any) -> Any:
        """x · weightᵀ"""
        operation = self.trt.MatrixOperation
        return self.add("matrix_multiply", x, operation.NONE, weight, operation.TRANSPOSE)
