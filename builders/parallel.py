"""Tensor and expert parallelism, applied to a plain decoder from outside."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from builders.decoder import Decoder
from builders.layers import Embedding, Norm, alibi_slopes
from builders.mapping import Mapping, Place


class Communicator(Protocol):
    """Joins the tensor parallel ranks of one pipeline stage."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over ranks."""

    def all_gather(self, x: Tensor) -> Tensor:
        """All ranks' tensors, side by side along the last dimension."""


def set_rank_constants(decoder: Decoder, mapping: Mapping, place: Place) -> None:
    """What ranks of equal shape differ in beside their weights."""
    heads = decoder.shape.num_heads
    for layer in decoder.layers.values():
        if decoder.spec.position == "alibi":
            layer.attn.slopes = alibi_slopes(decoder.spec)[place.tp * heads :][:heads].clone()
        if decoder.spec.moe is not None:
            layer.moe.first_expert = torch.tensor(place.ep * decoder.shape.num_experts)


def parallelize(decoder: Decoder, mapping: Mapping, place: Place, comm: Communicator) -> None:
    """Insert the collectives that make this decoder one of `mapping.tp_size` ranks."""
    if mapping.tp_size == 1:
        return
    for layer in decoder.layers.values():
        _sum_output(layer.attn.o, comm)
        _sum_output(layer.moe if decoder.spec.moe else layer.mlp.down, comm)
        if decoder.spec.qk_norm == "whole":
            layer.attn.q_norm = SplitNorm(layer.attn.q_norm, mapping.tp_size, comm)
            layer.attn.k_norm = SplitNorm(layer.attn.k_norm, mapping.tp_size, comm)
    if decoder.shape.first and mapping.embedding_split == "vocab":
        decoder.embed = VocabEmbedding(decoder.embed, place, comm)
    if decoder.shape.first and mapping.embedding_split == "hidden":
        _gather_output(decoder.embed, comm)
    if decoder.shape.last:
        _gather_output(decoder.head, comm)


def _sum_output(module: nn.Module, comm: Communicator) -> None:
    module.register_forward_hook(lambda _module, _inputs, output: comm.all_reduce(output))


def _gather_output(module: nn.Module, comm: Communicator) -> None:
    module.register_forward_hook(lambda _module, _inputs, output: comm.all_gather(output))


class VocabEmbedding(nn.Module):
    """An embedding of which this rank holds some rows: the others' ids look up zeros."""

    first: Tensor

    def __init__(self, table: Embedding, place: Place, comm: Communicator) -> None:
        super().__init__()
        self.weight, self.comm = table.weight, comm
        first = torch.tensor(place.tp * table.weight.shape[0])
        self.register_buffer("first", first, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.weight.shape[0]
        local = ids - self.first
        held = (local >= 0) & (local < rows)
        x = self.weight[local.clamp(0, rows - 1)] * held[:, None].to(self.weight.dtype)
        return self.comm.all_reduce(x)


class SplitNorm(nn.Module):
    """A norm over a dimension that the ranks share: its moments are those of all ranks.

    Where ranks hold copies of a head, every head is copied equally often, so the means stay right.
    """

    def __init__(self, norm: Norm, ranks: int, comm: Communicator) -> None:
        super().__init__()
        self.norm, self.ranks, self.comm = norm, ranks, comm

    def forward(self, x: Tensor) -> Tensor:
        norm, wide = self.norm, x.float()
        mean = torch.zeros_like(wide[..., :1]) if norm.kind == "rmsnorm" else wide.mean(-1, keepdim=True)
        spread = (wide - mean).square().mean(-1, keepdim=True)
        moments = torch.cat([mean, mean.square(), spread], dim=-1)
        mean, square, spread = (self.comm.all_reduce(moments) / self.ranks).chunk(3, dim=-1)
        scaled = (wide - mean) * torch.rsqrt(spread + square - mean.square() + norm.eps)
        weight = norm.weight + 1 if norm.kind == "layernorm1p" else norm.weight
        out = scaled.to(x.dtype) * weight
        return out if norm.bias is None else out + norm.bias
