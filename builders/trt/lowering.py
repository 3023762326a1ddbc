"""What every operator of a program becomes in TensorRT: one table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from builders.export import UnknownOperator
from builders.trt.activations import ACTIVATIONS, silu, square
from builders.trt.attention import Slots, attention, rotate
from builders.trt.experts import moe
from builders.trt.net import Net
from builders.trt.quantized import quantized_linear

Lowered = Callable[..., Any]


class Operators(dict[str, Lowered]):
    """A program's operators as functions that add layers to one network."""

    def __missing__(self, name: str) -> Lowered:
        raise UnknownOperator(f"{name}: TensorRT's lowering does not know this operator")


def operators(net: Net, slots: Slots, scope: str) -> Operators:
    """The table for one piece of the model; `scope` goes before the names of its layers."""

    def bound(name: str, function: Lowered) -> Lowered:
        def lower(*args: Any, **kwargs: Any) -> Any:
            net.scope = f"{scope}{name}"
            return function(net, *args, **kwargs)

        return lower

    with_slots = {name: _with_slots(function, slots) for name, function in ON_SLOTS.items()}
    table = {**PLAIN, **with_slots}
    return Operators({name: bound(name, function) for name, function in table.items()})


def _with_slots(function: Lowered, slots: Slots) -> Lowered:
    return lambda net, *args: function(net, slots, *args)


def linear(net: Net, x: Any, weight: Any, bias: Any = None) -> Any:
    out = net.matmul(x, weight)
    return out if bias is None else net.binary("SUM", out, bias)


def gather(net: Net, x: Any, axis: int, indices: Any) -> Any:
    return net.add("gather", x, indices, axis)


def rms_norm(net: Net, x: Any, _shape: Sequence[int], weight: Any, eps: float) -> Any:
    wide = net.cast(x, torch.float32)
    power = net.reduce("AVG", square(net, wide), -1, keep=True)
    scaled = net.binary("PROD", wide, rsqrt(net, net.binary("SUM", power, eps)))
    return net.cast(net.binary("PROD", scaled, weight), net.torch_dtype(x))


def layer_norm(
    net: Net, x: Any, shape: Sequence[int], weight: Any, bias: Any, eps: float, _cudnn: bool = False
) -> Any:
    """In float32, as PyTorch computes it whatever the dtype."""
    wide, axis = net.cast(x, torch.float32), len(x.shape) - 1
    if bias is None:
        bias = net.constant(torch.zeros(list(shape)))
    weight, bias = (net.ranked(net.cast(part, torch.float32), axis + 1) for part in (weight, bias))
    layer = net.layer("normalization_v2", wide, weight, bias, 1 << axis)
    layer.epsilon = eps
    return net.cast(layer.get_output(0), net.torch_dtype(x))


def rsqrt(net: Net, x: Any) -> Any:
    return net.unary("RECIP", net.unary("SQRT", x))


def clamp(net: Net, x: Any, low: float | None = None, high: float | None = None, **named: float) -> Any:
    low, high = named.get("min", low), named.get("max", high)
    x = x if low is None else net.binary("MAX", x, low)
    return x if high is None else net.binary("MIN", x, high)


def greater_equal(net: Net, a: Any, b: Any) -> Any:
    return net.unary("NOT", net.binary("LESS", a, b))


def mean(net: Net, x: Any, axes: Sequence[int], keep: bool = False) -> Any:
    (axis,) = axes
    return net.reduce("AVG", x, axis, keep=keep)


def unsqueeze(net: Net, x: Any, axis: int) -> Any:
    dims = list(x.shape)
    dims.insert(axis % (len(dims) + 1), 1)
    return net.reshape(x, dims)


def flatten(net: Net, x: Any, start: int = 0, end: int = -1) -> Any:
    dims, end = list(x.shape), end % len(x.shape)
    return net.reshape(x, [*dims[:start], math.prod(dims[start : end + 1]), *dims[end + 1 :]])


def unflatten(net: Net, x: Any, axis: int, sizes: Sequence[int]) -> Any:
    dims = list(x.shape)
    axis %= len(dims)
    known = math.prod(size for size in sizes if size > 0)
    inner = [size if size > 0 else dims[axis] // known for size in sizes]
    return net.reshape(x, [*dims[:axis], *inner, *dims[axis + 1 :]])


def split(net: Net, x: Any, sizes: Sequence[int], axis: int = 0) -> list[Any]:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [net.slice(x, axis, start, size) for start, size in zip(starts, sizes, strict=True)]


def chunk(net: Net, x: Any, count: int, axis: int = 0) -> list[Any]:
    return split(net, x, [x.shape[axis] // count] * count, axis)


def gelu(net: Net, x: Any, approximate: str = "none") -> Any:
    return ACTIVATIONS["gelu_tanh" if approximate == "tanh" else "gelu"](net, x)


def all_reduce(net: Net, x: Any, ranks: int) -> Any:
    return _collective(net, x, ranks, "ALL_REDUCE", "SUM")


def all_gather(net: Net, x: Any, ranks: int) -> Any:
    """TensorRT joins along the first dimension: [ranks · T, N] is brought to [T, ranks · N]."""
    width = x.shape[-1]
    joined = net.reshape(_collective(net, x, ranks, "ALL_GATHER", "NONE"), (ranks, -1, width))
    return net.reshape(net.transpose(joined, (1, 0, 2)), (-1, ranks * width))


def _collective(net: Net, x: Any, ranks: int, operation: str, combine: str) -> Any:
    trt = net.trt
    kind, combined = getattr(trt.CollectiveOperation, operation), getattr(trt.ReduceOperation, combine)
    everyone = torch.empty(0, dtype=torch.int64).numpy()
    layer = net.layer("dist_collective", x, kind, combined, -1, everyone)
    layer.num_ranks = ranks
    return layer.get_output(0)


def binary(operation: str) -> Lowered:
    return lambda net, a, b: net.binary(operation, a, b)


def unary(operation: str) -> Lowered:
    return lambda net, x: net.unary(operation, x)


PLAIN: Mapping[str, Lowered] = {
    "aten.linear": linear,
    "aten.embedding": lambda net, table, ids: gather(net, table, 0, ids),
    "aten.index_select": gather,
    "aten.rms_norm": rms_norm,
    "aten.layer_norm": layer_norm,
    "aten.add": binary("SUM"),
    "aten.sub": binary("SUB"),
    "aten.mul": binary("PROD"),
    "aten.div": binary("DIV"),
    "aten.pow": binary("POW"),
    "aten.square": square,
    "aten.rsqrt": rsqrt,
    "aten.mean": mean,
    "aten.cos": unary("COS"),
    "aten.sin": unary("SIN"),
    "aten.where": Net.select,
    "aten.gt": binary("GREATER"),
    "aten.ge": greater_equal,
    "aten.lt": binary("LESS"),
    "aten.logical_and": binary("AND"),
    "aten.clamp": clamp,
    "aten.silu": silu,
    "aten.gelu": gelu,
    "aten.relu": ACTIVATIONS["relu"],
    "aten.to": Net.cast,
    "aten.narrow": Net.slice,
    "aten.unsqueeze": unsqueeze,
    "aten.flatten": flatten,
    "aten.unflatten": unflatten,
    "aten.split_with_sizes": split,
    "aten.chunk": chunk,
    "aten.cat": Net.concat,
    "aten.zeros_like": lambda net, x, **_memory: clamp(net, x, 0.0, 0.0),
    "getitem": lambda _net, values, index: values[index],
    "rankforge.moe": moe,
    "rankforge.quantized_linear": quantized_linear,
    "rankforge.all_reduce": all_reduce,
    "rankforge.all_gather": all_gather,
}

ON_SLOTS: Mapping[str, Lowered] = {"rankforge.rotate": rotate, "rankforge.attention": attention}
"""Those that need to know which tokens are of one sequence."""
