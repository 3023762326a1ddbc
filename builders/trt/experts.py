"""A mixture of experts from plain layers: every expert that is held computes every token, weighted by zero
where it was not chosen. TensorRT's own MoE layer is for data-centre Blackwell alone."""

from __future__ import annotations

from typing import Any

import torch

from builders.trt.activations import act
from builders.trt.net import Net
from builders.trt.quantized import dequantized


def moe(
    net: Net,
    x: Any,
    logits: Any,
    up: Any,
    down: Any,
    up_scale: Any,
    down_scale: Any,
    first_expert: Any,
    top_k: int,
    renormalize: bool,
    activation: str,
    gated: bool,
) -> Any:
    """x [T, H]; logits [T, all experts]; up [experts, width, H]; down [experts, H, width]."""
    dtype = net.torch_dtype(x)
    up, down = dequantized(net, up, up_scale, dtype), dequantized(net, down, down_scale, dtype)
    chosen = _shares(net, logits, top_k, renormalize, first_expert, up.shape[0])
    hidden = act(net, net.matmul(net.ranked(x, 3), up), activation, gated)  # [experts, T, width]
    weighted = net.binary("PROD", net.matmul(hidden, down), net.cast(chosen, dtype))
    return net.reduce("SUM", weighted, 0, keep=False)


def _shares(net: Net, logits: Any, top_k: int, renormalize: bool, first_expert: Any, num_experts: int) -> Any:
    """[experts, T, 1] How much of each expert held here a token gets; most are zero."""
    weights, chosen = _route(net, net.cast(logits, torch.float32), top_k, renormalize)
    held = net.constant(torch.arange(num_experts, dtype=torch.int32).view(-1, 1, 1))
    matches = net.binary("EQUAL", chosen, net.binary("SUM", held, first_expert))  # [experts, T, top_k]
    return net.reduce("SUM", net.binary("PROD", net.cast(matches, torch.float32), weights), 2, keep=True)


def _route(net: Net, logits: Any, top_k: int, renormalize: bool) -> tuple[Any, Any]:
    """Weights and experts [T, top_k]."""
    ranked = logits if renormalize else _softmax(net, logits)
    layer = net.layer("topk", ranked, net.trt.TopKOperation.MAX, top_k, 2)
    best, chosen = layer.get_output(0), layer.get_output(1)
    return (_softmax(net, best) if renormalize else best), chosen


def _softmax(net: Net, x: Any) -> Any:
    layer = net.layer("softmax", x)
    layer.axes = 2
    return layer.get_output(0)
