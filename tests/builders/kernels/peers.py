"""Ranks of a node in one process: the halves of their calls, one after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from builders.kernels.call import Call
from builders.kernels.reduce import REDUCE_CONFIG, PeerBuffers, all_reduce, inbox_shape


def buffers_of(ranks: int, blocks: int, *, before: int = 0) -> list[PeerBuffers]:
    """As a communicator makes them; `before` is how many calls every block has taken part in."""
    inboxes = [torch.zeros(inbox_shape(ranks, blocks), dtype=torch.int64) for _ in range(ranks)]
    return [
        PeerBuffers(
            rank=rank,
            inbox=inbox,
            others=(*inboxes[:rank], *inboxes[rank + 1 :]),
            epochs=torch.full((blocks,), before, dtype=torch.int32),
        )
        for rank, inbox in enumerate(inboxes)
    ]


def push(x: Tensor, buffers: PeerBuffers) -> list[Call]:
    return all_reduce(x, buffers, REDUCE_CONFIG, out=torch.empty_like(x), take=False)


def take(x: Tensor, buffers: PeerBuffers, out: Tensor, residual: Tensor | None = None) -> list[Call]:
    return all_reduce(x, buffers, REDUCE_CONFIG, out=out, residual=residual, push=False)


def summed(parts: Sequence[Tensor], residual: Tensor | None = None) -> Tensor:
    """In float32, in the order of ranks, rounded once."""
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part.float()
    return (total if residual is None else total + residual.float()).to(parts[0].dtype)
