"""Executes a finished TensorRT network in PyTorch, layer by layer, from what TensorRT itself says of it.

It stands in for a GPU that is not here. A layer or an attribute that it does not know is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorrt_rtx as trt
import torch
import torch.nn.functional as F
from torch import Tensor

from builders.ops import Communicator

DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
    "INT8": torch.int8,
    "FP8": torch.float8_e4m3fn,
}
BINARY = {
    "SUM": torch.add, "PROD": torch.mul, "SUB": torch.sub, "DIV": torch.div, "POW": torch.pow,
    "MAX": torch.maximum, "MIN": torch.minimum, "LESS": torch.lt, "GREATER": torch.gt, "EQUAL": torch.eq,
    "AND": torch.logical_and,
}  # fmt: skip
UNARY = {
    "SQRT": torch.sqrt, "RECIP": torch.reciprocal, "COS": torch.cos, "SIN": torch.sin,
    "NOT": torch.logical_not,
}  # fmt: skip
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "SIGMOID": torch.sigmoid,
    "RELU": F.relu,
    "GELU_ERF": F.gelu,
    "GELU_TANH": lambda x: F.gelu(x, approximate="tanh"),
}
REDUCTIONS = {"AVG": torch.mean, "SUM": torch.sum}
CLASSES = {name.lower(): getattr(trt, name) for name in dir(trt) if name.endswith("Layer")}


class Interpreter:
    """One network, as one rank of a group."""

    def __init__(self, definition: Any, comm: Communicator) -> None:
        self._definition, self._comm = definition, comm
        self._layers = [_typed(definition.get_layer(index)) for index in range(definition.num_layers)]

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named inputs to named outputs; every value has the dtype and the shape that TensorRT expects."""
        values = dict(inputs)
        for index in range(self._definition.num_inputs):
            _check(self._definition.get_input(index), values)
        for kind, layer in self._layers:
            self._execute(kind, layer, values)
        outputs = (self._definition.get_output(index).name for index in range(self._definition.num_outputs))
        return {name: values[name] for name in outputs}

    def _execute(self, kind: str, layer: Any, values: dict[str, Tensor]) -> None:
        wanted = (layer.get_input(index) for index in range(layer.num_inputs))
        args = [None if tensor is None else values[tensor.name] for tensor in wanted]
        made = self._collective(layer, args[0]) if kind == "DIST_COLLECTIVE" else HANDLERS[kind](layer, args)
        for index, value in enumerate(made if isinstance(made, tuple) else (made,)):
            if (tensor := layer.get_output(index)) is not None:
                values[tensor.name] = value
                _check(tensor, values)

    def _collective(self, layer: Any, x: Tensor | None) -> Tensor:
        """TensorRT does not give the operation back: a gather is the one whose first dimension grows."""
        assert x is not None, "a collective has an input"
        if "all_reduce" in layer.name:
            return self._comm.all_reduce(x)
        return torch.cat(self._comm.all_gather(x).chunk(layer.num_ranks, -1), 0)


def _typed(layer: Any) -> tuple[str, Any]:
    """The layer as its own class, which is where its attributes are."""
    kind = layer.type.name
    layer.__class__ = CLASSES[f"i{kind.replace('_', '').lower()}layer"]
    return kind, layer


def _check(tensor: Any, values: Mapping[str, Tensor]) -> None:
    value, shape = values[tensor.name], tuple(tensor.shape)
    fits = len(shape) == value.dim() and all(a in (-1, b) for a, b in zip(shape, value.shape, strict=True))
    assert value.dtype == DTYPES[tensor.dtype.name], f"{tensor.name}: {value.dtype}, not {tensor.dtype}"
    assert fits, f"{tensor.name}: {tuple(value.shape)}, not {shape}"


def _axes(mask: int, x: Tensor) -> list[int]:
    return [axis for axis in range(x.dim()) if mask >> axis & 1]


def constant(layer: Any, _args: Sequence[Any]) -> Tensor:
    weights = layer.weights
    assert isinstance(weights, np.ndarray), f"{layer.name}: weights without values"
    return torch.from_numpy(np.ascontiguousarray(weights)).view(tuple(layer.shape)).clone()


def shuffle(layer: Any, args: Sequence[Any]) -> Tensor:
    x = args[0]
    x = x.permute(*list(layer.first_transpose)[: x.dim()]) if x.dim() else x
    if len(args) > 1 and args[1] is not None:
        x = x.reshape(*args[1].tolist())
    elif (sizes := _reshape_sizes(layer, x)) is not None:
        x = x.reshape(sizes)
    return x.permute(*list(layer.second_transpose)[: x.dim()]) if x.dim() else x


def _reshape_sizes(layer: Any, x: Tensor) -> list[int] | None:
    """0 keeps a dimension; no sizes at all keep all of them."""
    try:
        sizes = list(layer.reshape_dims)
    except (TypeError, ValueError):
        return None
    if not sizes and x.dim():
        return None
    return [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]


def slice_(layer: Any, args: Sequence[Any]) -> Tensor:
    x: Tensor = args[0]
    assert all(step == 1 for step in tuple(layer.stride or ())), f"{layer.name}: strides"
    for axis, start, size in zip(tuple(layer.axes), tuple(layer.start), tuple(layer.shape), strict=True):
        x = x.narrow(axis, start, size)
    return x


def matmul(layer: Any, args: Sequence[Any]) -> Tensor:
    x, y = (
        part.transpose(-1, -2) if op.name == "TRANSPOSE" else part
        for part, op in zip(args, (layer.op0, layer.op1), strict=True)
    )
    assert x.dim() == y.dim(), f"{layer.name}: {x.dim()} and {y.dim()} dimensions"
    return x @ y  # type: ignore[no-any-return]


def elementwise(layer: Any, args: Sequence[Any]) -> Tensor:
    x, y = args
    assert x.dtype == y.dtype and x.dim() == y.dim(), (
        f"{layer.name}: {x.shape} {x.dtype}, {y.shape} {y.dtype}"
    )
    return BINARY[layer.op.name](x, y)


def gather(layer: Any, args: Sequence[Any]) -> Tensor:
    x, index = args
    assert layer.mode.name == "DEFAULT", f"{layer.name}: {layer.mode}"
    shape = (*x.shape[: layer.axis], *index.shape, *x.shape[layer.axis + 1 :])
    return x.index_select(layer.axis, index.reshape(-1)).reshape(shape)  # type: ignore[no-any-return]


def normalization(layer: Any, args: Sequence[Any]) -> Tensor:
    x, scale, bias = args
    axes = _axes(layer.axes, x)
    centered = x - x.mean(axes, keepdim=True)
    return centered / torch.sqrt(centered.square().mean(axes, keepdim=True) + layer.epsilon) * scale + bias  # type: ignore[no-any-return]


def top_k(layer: Any, args: Sequence[Any]) -> tuple[Tensor, Tensor]:
    best, index = args[0].topk(layer.k, int(math.log2(layer.axes)))
    return best, index.int()


def fill(_layer: Any, args: Sequence[Any]) -> Tensor:
    """A linear ramp: a start, and a step for every dimension."""
    sizes = args[0].tolist()
    ramp = torch.zeros(sizes, dtype=torch.int32) + args[1]
    for axis, size in enumerate(sizes):
        shape = [-1 if other == axis else 1 for other in range(len(sizes))]
        ramp = ramp + args[2][axis] * torch.arange(size, dtype=torch.int32).view(shape)
    return ramp.int()


def rotary(layer: Any, args: Sequence[Any]) -> Tensor:
    x, cos, sin = args[:3]
    assert not layer.interleaved, f"{layer.name}: interleaved"
    width = layer.rotary_embedding_dim or x.shape[-1]
    first, second, rest = x.split([width // 2, width // 2, x.shape[-1] - width], dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def cache_update(layer: Any, args: Sequence[Any]) -> Tensor:
    """In place: new [B, heads, S, D] at each sequence's own start."""
    cache, new, starts = args[:3]
    for row, start in enumerate(starts.tolist()):
        assert start + new.shape[2] <= cache.shape[2], f"{layer.name}: past the end of the cache"
        cache[row, :, start : start + new.shape[2]] = new[row]
    return cache  # type: ignore[no-any-return]


def attention(layer: Any, args: Sequence[Any]) -> Tensor:
    """q, k, v [B, heads, length, D], and either a mask or how many keys each sequence has.

    Beside a mask, no kernel of TensorRT's reads the lengths: a mask has to hide what lies beyond them.
    """
    q, k, v = args[:3]
    mask, lengths = (args[index] if len(args) > index else None for index in (3, 6))
    repeat = q.shape[1] // k.shape[1]
    k, v = (part.repeat_interleave(repeat, 1).float() for part in (k, v))
    scores = q.float() @ k.transpose(-1, -2)
    if mask is None:
        scores = scores.masked_fill(~_seen(layer, scores, lengths), float("-inf"))
    else:
        # TensorRT takes no mask beside a causal kind.
        scores = (
            scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask.float()
        )
    return (scores.softmax(-1) @ v).to(q.dtype)  # type: ignore[no-any-return]


def _seen(layer: Any, scores: Tensor, lengths: Tensor | None) -> Tensor:
    """Which keys each query sees, by how many there are and what comes after it."""
    queries, keys = scores.shape[-2:]
    held = torch.tensor(keys) if lengths is None else lengths.view(-1, 1, 1, 1)
    place, latest = torch.arange(keys), torch.arange(queries)[:, None]
    kind = layer.attention.causal_kind.name
    latest = {"NONE": latest + keys, "UPPER_LEFT": latest, "LOWER_RIGHT": latest + held - queries}[kind]
    return (place < held) & (place <= latest)


def dequantize(layer: Any, args: Sequence[Any]) -> Tensor:
    """One scale, one for each slice of an axis, or one for each block of columns."""
    narrow, scale = args[0].float(), args[1].float()
    if scale.dim() == 1:
        scale = scale.view([-1 if axis == layer.axis else 1 for axis in range(narrow.dim())])
    elif scale.dim() > 1:
        scale = scale.repeat_interleave(narrow.shape[1] // scale.shape[1], 1)
    return (narrow * scale).to(DTYPES[layer.get_output(0).dtype.name])  # type: ignore[no-any-return]


HANDLERS: Mapping[str, Callable[[Any, Sequence[Any]], Any]] = {
    "CONSTANT": constant,
    "SHAPE": lambda _layer, args: torch.tensor(args[0].shape),
    "CONCATENATION": lambda layer, args: torch.cat(list(args), layer.axis),
    "SHUFFLE": shuffle,
    "CAST": lambda layer, args: args[0].to(DTYPES[layer.to_type.name]),
    "ELEMENTWISE": elementwise,
    "UNARY": lambda layer, args: UNARY[layer.op.name](args[0]),
    "ACTIVATION": lambda layer, args: ACTIVATIONS[layer.type.name](args[0]),
    "REDUCE": lambda layer, args: REDUCTIONS[layer.op.name](
        args[0], _axes(layer.axes, args[0]), keepdim=layer.keep_dims
    ),
    "SLICE": slice_,
    "MATRIX_MULTIPLY": matmul,
    "GATHER": gather,
    "SELECT": lambda _layer, args: torch.where(*args),
    "NORMALIZATION": normalization,
    "TOPK": top_k,
    "SOFTMAX": lambda layer, args: args[0].softmax(int(math.log2(layer.axes))),
    "FILL": fill,
    "ROTARY_EMBEDDING": rotary,
    "KV_CACHE_UPDATE": cache_update,
    "ATTENTION_INPUT": attention,
    "ATTENTION_OUTPUT": lambda _layer, args: args[0],
    "DEQUANTIZE": dequantize,
}
