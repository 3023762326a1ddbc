"""Activation functions, by the names that a ModelSpec gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from builders.trt.net import Net


def act(net: Net, x: Any, activation: str, gated: bool) -> Any:
    """The activation; where gated, of the first half of the last dimension, times the second."""
    if not gated:
        return ACTIVATIONS[activation](net, x)
    half = x.shape[-1] // 2
    gate, x = net.slice(x, -1, 0, half), net.slice(x, -1, half, half)
    return net.binary("PROD", ACTIVATIONS[activation](net, gate), x)


def silu(net: Net, x: Any) -> Any:
    return net.binary("PROD", x, net.activation("SIGMOID", x))


def square(net: Net, x: Any) -> Any:
    return net.binary("PROD", x, x)


ACTIVATIONS: Mapping[str, Callable[[Net, Any], Any]] = {
    "gelu": lambda net, x: net.activation("GELU_ERF", x),
    "gelu_tanh": lambda net, x: net.activation("GELU_TANH", x),
    "silu": silu,
    "relu": lambda net, x: net.activation("RELU", x),
    "relu2": lambda net, x: square(net, net.activation("RELU", x)),
}
