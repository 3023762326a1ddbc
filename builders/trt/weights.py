"""Where a network's weights come from: the memory that a rank file is mapped to, or inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from builders.program import Program, TensorType
from builders.trt.net import Net

Weights = Callable[[str], Tensor]
"""A weight by its name in the rank's file; the tied head is asked for by its own name."""


class Source:
    """Gives programs their weights and constants as tensors of one network."""

    def __init__(self, net: Net, weights: Weights | None, constants: Mapping[str, Tensor]) -> None:
        self._net, self._weights, self._constants = net, weights, constants
        self._made: dict[str, Any] = {}
        self.inputs: list[str] = []
        """What the plan will be given when it runs."""

    def tensors(self, program: Program, scope: str, stored: str) -> dict[str, Any]:
        """By the program's value names; `stored` goes before the names of a rank's file."""
        found = {}
        for value, name in program.weights.items():
            found[value] = self._weight(scope + name, stored + name, program.types[value])
        for value, name in program.constants.items():
            found[value] = self._constant(name, program.types[value])
        return found

    def _weight(self, name: str, stored: str, kind: TensorType) -> Any:
        if self._weights is None:
            return self._input(name, kind)
        return self._embedded(name, self._weights(stored).to(_dtype(kind)))

    def _constant(self, name: str, kind: TensorType) -> Any:
        """Shared by all layers; None for one that nothing reads."""
        if "0" in kind.shape:
            return None
        if name not in self._made:
            given = self._weights is None
            value = self._constants[name].to(_dtype(kind))
            self._made[name] = self._input(name, kind) if given else self._embedded(name, value)
        return self._made[name]

    def _input(self, name: str, kind: TensorType) -> Any:
        self.inputs.append(name)
        net, shape = self._net, [int(size) for size in kind.shape]
        return net.definition.add_input(name, net.dtype(_dtype(kind)), tuple(shape or [1]))

    def _embedded(self, name: str, value: Tensor) -> Any:
        self._net.scope = name
        return self._net.constant(value)


def _dtype(kind: TensorType) -> torch.dtype:
    """Indices are 32 bits wide in the network: TensorRT's lengths and positions are."""
    dtype: torch.dtype = getattr(torch, kind.dtype)
    return torch.int32 if dtype == torch.int64 else dtype


def given(names: Iterable[str], first_layer: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a plan without weights is given, by its own names: its layers count from zero.

    `tensors` are a rank's weights and constants.
    """
    return {name: _as_input(tensors[_stored(name, first_layer)]) for name in names}


def _stored(name: str, first_layer: int) -> str:
    head, *rest = name.split(".", 2)
    return name if head != "layers" else f"layers.{int(rest[0]) + first_layer}.{rest[1]}"


def _as_input(tensor: Tensor) -> Tensor:
    narrow = tensor.to(torch.int32) if tensor.dtype == torch.int64 else tensor
    return narrow if narrow.dim() else narrow.view(1)
