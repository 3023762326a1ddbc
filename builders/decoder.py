"""The one decoder, driven by a ModelSpec: plain PyTorch, one device, one rank's layers."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from builders.layers import Block, Embedding, Linear, Norm, Rotary
from builders.mapping import Mapping, padded_vocab, rank_shape
from builders.ops import LayerCache, Step
from builders.spec import ModelSpec


class Decoder(nn.Module):
    """The layers of one rank; `builders/parallel.py` joins the ranks of a tensor parallel group."""

    def __init__(self, spec: ModelSpec, mapping: Mapping, rank: int) -> None:
        super().__init__()
        self.spec, self.shape = spec, rank_shape(spec, mapping, rank)
        if self.shape.first:
            split = {"none": (1, 1), "vocab": (mapping.tp_size, 1), "hidden": (1, mapping.tp_size)}
            rows, cols = split[mapping.embedding_split]
            self.embed: nn.Module = Embedding(padded_vocab(spec, mapping) // rows, spec.hidden_size // cols)
            learned = spec.position == "learned"
            self.positions: nn.Module | None = (
                Embedding(spec.max_positions, spec.hidden_size) if learned else None
            )
        self.rotary = Rotary(spec.rope) if spec.rope else None
        self.layers = nn.ModuleDict({str(i): Block(spec, self.shape, i) for i in self.shape.layers})
        if self.shape.last:
            self.norm = Norm(spec, spec.hidden_size)
            self.head = Linear(spec.hidden_size, self.shape.vocab_size, bias=spec.head_bias)

    def forward(self, x: Tensor, step: Step, caches: list[LayerCache]) -> Tensor:
        """Token ids [T] (or the previous stage's hidden states [T, H]) to the wanted tokens'
        logits [R, vocabulary] (or this stage's hidden states)."""
        if self.shape.first:
            x = embedded(self.spec, self.embed, self.positions, x, step.positions)
        angles = self.rotary(step) if self.rotary else None
        for layer, cache in zip(self.blocks, caches, strict=True):
            x = layer(x, angles, step, cache)
        return logits(self.spec, self.norm, self.head, x, step.wanted) if self.shape.last else x

    @property
    def blocks(self) -> list[Block]:
        """The layers of this rank, in order."""
        return [cast(Block, layer) for layer in self.layers.values()]

    def new_caches(self, num_blocks: int, tokens_per_block: int) -> list[LayerCache]:
        """Empty caches for the layers of this rank, in the dtype and on the device of its weights."""
        like = next(self.parameters())
        shape = (num_blocks, tokens_per_block, self.shape.num_kv_heads, self.spec.head_dim)
        return [LayerCache(k=like.new_zeros(shape), v=like.new_zeros(shape)) for _ in self.layers]


def embedded(
    spec: ModelSpec, embed: nn.Module, learned: nn.Module | None, ids: Tensor, positions: Tensor
) -> Tensor:
    """Token ids [T] to [T, H]."""
    x: Tensor = embed(ids)
    if spec.embedding_scale != 1:
        x = x * spec.embedding_scale
    return x if learned is None else x + learned(positions)


def logits(spec: ModelSpec, norm: nn.Module, head: nn.Module, x: Tensor, wanted: Tensor) -> Tensor:
    """[T, H] to [R, vocabulary], in float32."""
    padded: Tensor = head(norm(x.index_select(0, wanted)))
    scores = padded.narrow(1, 0, spec.vocab_size).float()
    return scores if spec.logit_scale == 1 else scores * spec.logit_scale


def empty_decoder(spec: ModelSpec, mapping: Mapping, rank: int) -> Decoder:
    """A decoder without storage, for weights to be assigned to."""
    with torch.device("meta"):
        return Decoder(spec, mapping, rank).requires_grad_(False).eval()
