"""Running one rank: the interface of every engine, and the torch engine that interprets its programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from builders.export import OPERATORS, Graphs
from builders.ops import LayerCache, Step
from builders.program import Operators, Program, plain_operators, run


class Engine(Protocol):
    """One rank of a model, with its weights and its cache."""

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Token ids [T], or the previous stage's hidden states [T, H], to the wanted tokens' logits
        [R, vocabulary], or to hidden states for the next stage."""


class GraphEngine:
    """Executes the exported programs as they are, operator by operator."""

    def __init__(
        self,
        graphs: Graphs,
        first_layer: int,
        tensors: Mapping[str, Tensor],
        caches: list[LayerCache],
        operators: Operators | None = None,
    ) -> None:
        self._graphs, self._caches = graphs, caches
        self._operators = operators or plain_operators(OPERATORS)
        self._embed = _bound(graphs.embed, tensors, "") if graphs.embed else {}
        self._rotary = _bound(graphs.rotary, tensors, "") if graphs.rotary else {}
        self._head = _bound(graphs.head, tensors, "") if graphs.head else {}
        self._layers = [
            (graphs.blocks[block], _bound(graphs.blocks[block], tensors, f"layers.{first_layer + index}."))
            for index, block in enumerate(graphs.layers)
        ]

    def forward(self, x: Tensor, step: Step) -> Tensor:
        inputs = {f"step_{name}": value for name, value in vars(step).items()}
        if self._graphs.embed:
            x = self._run(self._graphs.embed, self._embed, {"ids": x, "positions": step.positions})
        inputs |= self._angles(inputs)
        for (program, bound), cache in zip(self._layers, self._caches, strict=True):
            x = self._run(program, bound, {**inputs, "x": x, "cache_k": cache.k, "cache_v": cache.v})
        if self._graphs.head:
            x = self._run(self._graphs.head, self._head, {"x": x, "wanted": step.wanted})
        return x

    def _angles(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        if self._graphs.rotary is None:
            return {"rotary": None}
        cos, sin = run(self._graphs.rotary, self._operators, {**inputs, **self._rotary})
        return {"rotary_0": cos, "rotary_1": sin}

    def _run(self, program: Program, bound: Mapping[str, Tensor], inputs: Mapping[str, Any]) -> Tensor:
        (result,) = run(program, self._operators, {**bound, **inputs})
        return result


def _bound(program: Program, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Weights under the names that the program knows them by, and the rank's constants."""
    weights = {value: tensors[prefix + name] for value, name in program.weights.items()}
    return weights | {value: tensors[name] for value, name in program.constants.items()}
