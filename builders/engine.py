"""Running one rank: the interface of every engine, and the torch engine, which binds weights to programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from builders.ops import LayerCache, Step
from builders.program import Program, plain_operators, run


class Engine(Protocol):
    """One rank of a model, with its weights and its cache."""

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Token ids [T], or the previous stage's hidden states [T, H], to the wanted tokens' logits
        [R, vocabulary], in float32 or as wide as the weights, or to hidden states for the next stage."""

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Contents of blocks of the cache, (source, target), one after another."""


Runner = Callable[[Mapping[str, Any]], list[Tensor]]
"""Executes a program on values by name: inputs, weights and constants."""


def interpreted(program: Program) -> Runner:
    """Operator by operator, as PyTorch runs them."""
    operators = plain_operators()
    return lambda bound: run(program, operators, bound)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A program and what executes it."""

    program: Program
    runner: Runner


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """All programs of a rank; layers of equal structure share one."""

    embed: Piece | None
    rotary: Piece | None
    blocks: tuple[Piece, ...]
    layers: tuple[int, ...]
    """For every layer of the rank, which of the blocks it is."""
    head: Piece | None


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A piece with its weights and constants under the names that the program knows them by."""

    piece: Piece
    tensors: Mapping[str, Tensor]

    def __call__(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        return self.piece.runner({**self.tensors, **inputs})


def bind(piece: Piece | None, tensors: Mapping[str, Tensor], prefix: str = "") -> Bound | None:
    """Give a piece the tensors of its place in the model."""
    if piece is None:
        return None
    weights = {value: tensors[prefix + name] for value, name in piece.program.weights.items()}
    constants = {value: tensors[name] for value, name in piece.program.constants.items()}
    return Bound(piece=piece, tensors=weights | constants)


class TorchEngine:
    """A rank whose programs run in this process, on the CPU or on its device."""

    def __init__(
        self, pieces: Pieces, first_layer: int, tensors: Mapping[str, Tensor], caches: list[LayerCache]
    ) -> None:
        self._caches = caches
        self._embed, self._rotary, self._head = (
            bind(piece, tensors) for piece in (pieces.embed, pieces.rotary, pieces.head)
        )
        self._layers = [
            bind(pieces.blocks[block], tensors, f"layers.{first_layer + index}.")
            for index, block in enumerate(pieces.layers)
        ]

    def forward(self, x: Tensor, step: Step) -> Tensor:
        inputs: dict[str, Any] = {f"step_{name}": value for name, value in vars(step).items()}
        if self._embed is not None:
            (x,) = self._embed({"ids": x, "positions": step.positions})
        else:
            x = x.clone()  # layers may write over their input, and this one is the caller's
        inputs |= self._angles(inputs)
        for layer, cache in zip(self._layers, self._caches, strict=True):
            assert layer is not None, "every layer has a block"
            (x,) = layer({**inputs, "x": x, "cache_k": cache.k, "cache_v": cache.v})
        if self._head is not None:
            if not len(step.wanted):
                return x[:0]  # in the middle of a prompt
            (x,) = self._head({"x": x, "wanted": step.wanted})
        return x

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        if not copies:
            return
        sources, targets = zip(*copies, strict=True)
        if {*sources} & {*targets} or len({*targets}) < len(targets):
            for copy in copies:
                self.copy_blocks([copy])
            return
        tensors = [value for cache in self._caches for value in (cache.k, cache.v)]
        read, written = (torch.tensor(blocks).to(tensors[0].device) for blocks in (sources, targets))
        for tensor in tensors:
            tensor[written] = tensor[read]

    def _angles(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if self._rotary is None:
            return {"rotary": None}
        cos, sin = self._rotary(inputs)
        return {"rotary_0": cos, "rotary_1": sin}
