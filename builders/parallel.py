"""Tensor and expert parallelism, applied to a plain decoder from outside."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from builders.decoder import Decoder
from builders.layers import Embedding, Mlp, Norm
from builders.mapping import Mapping, Place
from builders.ops import all_gather, all_reduce


def parallelize(decoder: Decoder, mapping: Mapping, place: Place) -> None:
    """Insert the collectives that make this decoder one of `mapping.tp_size` ranks."""
    ranks = mapping.tp_size
    if ranks == 1:
        return
    for layer in decoder.blocks:
        _sum_output(layer.attn.o, ranks)
        _sum_output(layer.ffn.down if isinstance(layer.ffn, Mlp) else layer.ffn, ranks)
        if decoder.spec.qk_norm == "whole":
            layer.attn.q_norm = SplitNorm(cast(Norm, layer.attn.q_norm), ranks)
            layer.attn.k_norm = SplitNorm(cast(Norm, layer.attn.k_norm), ranks)
    if decoder.shape.first and mapping.embedding_split == "vocab":
        decoder.embed = VocabEmbedding(cast(Embedding, decoder.embed), place, ranks)
    if decoder.shape.first and mapping.embedding_split == "hidden":
        _gather_output(decoder.embed, ranks)
    if decoder.shape.last:
        _gather_output(decoder.head, ranks)


def _sum_output(module: nn.Module, ranks: int) -> None:
    module.register_forward_hook(lambda _module, _inputs, output: all_reduce(output, ranks))


def _gather_output(module: nn.Module, ranks: int) -> None:
    module.register_forward_hook(lambda _module, _inputs, output: all_gather(output, ranks))


class VocabEmbedding(nn.Module):
    """An embedding of which this rank holds some rows: the others' ids look up zeros."""

    first: Tensor

    def __init__(self, table: Embedding, place: Place, ranks: int) -> None:
        super().__init__()
        self.weight, self.ranks = table.weight, ranks
        first = torch.tensor(place.tp * table.weight.shape[0])
        self.register_buffer("first", first, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.weight.shape[0]
        local = ids - self.first
        held = torch.logical_and(local >= 0, local < rows)
        x = F.embedding(local.clamp(0, rows - 1), self.weight) * held.unsqueeze(1).to(self.weight.dtype)
        return all_reduce(x, self.ranks)


class SplitNorm(nn.Module):
    """A norm over a dimension that the ranks share: its moments are those of all ranks.

    Where ranks hold copies of a head, every head is copied equally often, so the means stay right.
    """

    def __init__(self, norm: Norm, ranks: int) -> None:
        super().__init__()
        # The weights keep the names that they have in a checkpoint.
        self.weight, self.bias = norm.weight, norm.bias
        self.kind, self.eps, self.ranks = norm.kind, norm.eps, ranks

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        none = torch.zeros_like(wide.narrow(-1, 0, 1))
        mean = none if self.kind == "rmsnorm" else wide.mean(-1, keepdim=True)
        spread = (wide - mean).square().mean(-1, keepdim=True)
        moments = torch.cat([mean, mean.square(), spread], dim=-1)
        mean, square, spread = (all_reduce(moments, self.ranks) / self.ranks).chunk(3, dim=-1)
        scaled = (wide - mean) * torch.rsqrt(spread + square - mean.square() + self.eps)
        weight = self.weight + 1 if self.kind == "layernorm1p" else self.weight
        out = scaled.to(x.dtype) * weight
        return out if self.bias is None else out + self.bias
