"""Steps over a paged cache for tests of kernels: packed tokens, shuffled blocks, padding rows at the end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from builders.kernels.attention import Attention, Chunk
from builders.kernels.cache import Paged
from builders.ops import attention

BLOCK = 16
"""Tokens per block."""


def chunks_of(*sizes: tuple[int, int]) -> list[Chunk]:
    """One sequence for each (position of its first token, tokens), in reverse order of the block table."""
    firsts = [sum(tokens for _, tokens in sizes[:place]) for place in range(len(sizes))]
    return [
        Chunk(sequence=len(sizes) - 1 - place, first=first, tokens=tokens, position=position)
        for place, (first, (position, tokens)) in enumerate(zip(firsts, sizes, strict=True))
    ]


def paged(
    chunks: Sequence[Chunk],
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    *,
    padding: int = 0,
    scaled: bool = False,
) -> Paged:
    """A cache full of noise, and the places of the chunks' tokens in it."""
    most = max(chunk.position + chunk.tokens for chunk in chunks)
    pages = -(-most // BLOCK)
    table = torch.randperm(len(chunks) * pages + 1)[: len(chunks) * pages].view(len(chunks), pages)
    rows = [(chunk.position + i, chunk.sequence) for chunk in chunks for i in range(chunk.tokens)]
    positions, sequences = torch.tensor(rows + [(-1, 0)] * padding).unbind(1)
    shape = (len(chunks) * pages + 1, BLOCK, kv_heads, dim)
    return Paged(
        k=torch.randn(shape).to(dtype),
        v=torch.randn(shape).to(dtype),
        block_table=table,
        positions=positions.contiguous(),
        sequences=sequences.contiguous(),
        k_scale=torch.tensor([0.5]) if scaled else None,
        v_scale=torch.tensor([1.5]) if scaled else None,
    )


def attended(q: Tensor, cache: Paged, computed: Attention) -> Tensor:
    """What `ops.attention` computes in float32; zeros for padding."""
    real = cache.positions >= 0
    positions, sequences = cache.positions[real], cache.sequences[real]
    slots = cache.block_table[sequences, positions // BLOCK] * BLOCK + positions % BLOCK
    k, v = (
        part.float() * (1.0 if scale is None else scale)
        for part, scale in ((cache.k, cache.k_scale), (cache.v, cache.v_scale))
    )
    out = torch.zeros(q.shape)
    out[real] = attention(
        q[real].float(),
        k.flatten(0, 1)[slots],
        v.flatten(0, 1)[slots],
        k,
        v,
        positions,
        sequences,
        positions,
        cache.block_table,
        computed.slopes,
        None,
        None,
        computed.scale,
        computed.window,
    )
    return out
