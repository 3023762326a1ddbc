"""What a rank needs beside its weights: ranks of equal shape run one program and differ in these."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from builders.decoder import Decoder
from builders.layers import Moe
from builders.mapping import Mapping as RankMapping
from builders.mapping import rank_shape
from builders.rope import tables
from builders.spec import ModelSpec


def rank_constants(spec: ModelSpec, mapping: RankMapping, rank: int) -> dict[str, Tensor]:
    """The constants of a rank, named as the buffers of the pieces that use them."""
    place, shape = mapping.place(rank), rank_shape(spec, mapping, rank)
    found = {"embed.first": torch.tensor(place.tp * shape.vocab_size)}
    if spec.rope is not None:
        found["frequencies"], found["by_length"] = tables(spec.rope)
    if spec.position == "alibi":
        heads = place.tp * shape.num_heads
        found["attn.slopes"] = alibi_slopes(spec)[heads : heads + shape.num_heads].clone()
    if spec.moe is not None:
        found["moe.first_expert"] = torch.tensor(place.ep * shape.num_experts)
    return found


def alibi_slopes(spec: ModelSpec) -> Tensor:
    """[num_heads] How fast each head forgets; head counts that are no power of two interleave."""
    full = 2 ** math.ceil(math.log2(spec.num_heads))
    slopes = 2.0 ** -(torch.arange(1, full + 1) * spec.alibi_bias_max / full)
    if full != spec.num_heads:
        slopes = torch.cat([slopes[1::2], slopes[::2]])[: spec.num_heads]
    return slopes


def set_constants(decoder: Decoder, constants: Mapping[str, Tensor]) -> None:
    """Give them to a decoder that was made without storage."""
    if decoder.rotary is not None:
        decoder.rotary.frequencies = constants["frequencies"]
        decoder.rotary.by_length = constants["by_length"]
    for layer in decoder.blocks:
        if "attn.slopes" in constants:
            layer.attn.slopes = constants["attn.slopes"]
        if isinstance(layer.ffn, Moe):
            layer.moe.first_expert = constants["moe.first_expert"]
