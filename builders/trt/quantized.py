"""Weights that are stored narrow, made wide where they are used.

A narrow constant must go straight into a DequantizeLinear: TensorRT refuses any other layer between.
"""

from __future__ import annotations

from typing import Any

import torch

from builders.trt.net import Net


def quantized_linear(net: Net, x: Any, weight: Any, scale: Any, zero: Any = None, bias: Any = None) -> Any:
    """Scale and zero [out, groups] each hold for a group of columns."""
    wide = _by_group(net, weight, net.cast(scale, net.torch_dtype(x)))
    if zero is not None:
        wide = _shifted(net, wide, net.binary("PROD", _wide(net, zero), scale))
    out = net.matmul(x, net.cast(wide, net.torch_dtype(x)))
    return out if bias is None else net.binary("SUM", out, bias)


def _by_group(net: Net, weight: Any, scale: Any) -> Any:
    """weight · scale; with one group a row, TensorRT knows it as quantization by channel."""
    rows, groups = scale.shape
    if groups > 1:
        return net.add("dequantize", weight, scale, scale.dtype)
    layer = net.layer("dequantize", weight, net.reshape(scale, (rows,)), scale.dtype)
    layer.axis = 0
    return layer.get_output(0)


def _shifted(net: Net, wide: Any, shift: Any) -> Any:
    rows, columns = wide.shape
    groups = shift.shape[1]
    grouped = net.reshape(wide, (rows, groups, columns // groups))
    return net.reshape(net.binary("SUB", grouped, net.reshape(shift, (rows, groups, 1))), (rows, columns))


def dequantized(net: Net, weight: Any, scale: Any, dtype: torch.dtype) -> Any:
    """weight · scale, broadcast; the weight itself where there is no scale."""
    if scale is None:
        return weight
    return net.cast(net.binary("PROD", _wide(net, weight), scale), dtype)


def _wide(net: Net, x: Any) -> Any:
    """In float32, whatever it is stored as."""
    if net.torch_dtype(x).is_floating_point and net.torch_dtype(x).itemsize > 1:
        return net.cast(x, torch.float32)
    return net.add("dequantize", x, net.constant(torch.ones(())), net.dtype(torch.float32))
