"""Launcher of sums over the ranks of a node, for tensors so small that latency is all they cost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from builders.kernels.call import Call, Config, Constant, call, cdiv

MOST_RANKS = 8
MOST_BYTES = 512 << 10
"""Of a rank's tensor. Every rank sends twice as much to every other: beyond, bandwidth decides."""

PACKETS = 128
"""Of a block: 4 for each thread of a warp."""

_WORD_BYTES = 4
"""Of a packet, beside as many that say of which call it is."""

MOST_BLOCKS = MOST_BYTES // (PACKETS * _WORD_BYTES)

_KINDS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}

REDUCE_CONFIG = Config(blocks={}, warps=1, stages=1)
"""With one warp, nothing in a block waits for anything else of it."""


@dataclass(frozen=True, kw_only=True)
class PeerBuffers:
    """Memory in which the ranks of a group find each other's packets; used by one stream of each rank."""

    rank: int
    inbox: Tensor
    """int64, of `inbox_shape`: this rank's, zeros before any rank's first launch."""
    others: tuple[Tensor, ...]
    """The other ranks' inboxes in the order of ranks, as this device reaches them."""
    epochs: Tensor
    """int32 [blocks], zeros at first: calls that every block has taken part in, on this device alone."""

    @property
    def ranks(self) -> int:
        return len(self.others) + 1

    @property
    def blocks(self) -> int:
        """Of the largest launch."""
        return self.inbox.shape[2]


def inbox_shape(ranks: int, blocks: int = MOST_BLOCKS) -> tuple[int, ...]:
    """Even and odd calls, who has sent, block, packet."""
    return (2, ranks, blocks, PACKETS)


def example_buffers(ranks: int) -> PeerBuffers:
    """Without storage, to compile for."""
    inbox = torch.empty(inbox_shape(ranks), dtype=torch.int64, device="meta")
    epochs = torch.empty(MOST_BLOCKS, dtype=torch.int32, device="meta")
    return PeerBuffers(rank=0, inbox=inbox, others=(inbox,) * (ranks - 1), epochs=epochs)


def can_reduce(dtype: torch.dtype, ranks: int) -> bool:
    """Whether there is a kernel."""
    return dtype in _KINDS and 2 <= ranks <= MOST_RANKS


def fits(x: Tensor, buffers: PeerBuffers) -> bool:
    """Whether a tensor is small enough, and whole words; the same on all ranks, as shapes are."""
    most = buffers.blocks * PACKETS * _WORD_BYTES
    return can_reduce(x.dtype, buffers.ranks) and 0 < x.nbytes <= most and x.nbytes % _WORD_BYTES == 0


def all_reduce(
    x: Tensor,
    buffers: PeerBuffers,
    config: Config,
    *,
    out: Tensor,
    residual: Tensor | None = None,
    push: bool = True,
    take: bool = True,
) -> list[Call]:
    """out = the sum of all ranks' x + residual; all contiguous. The halves of a call, where not both."""
    assert fits(x, buffers), "what does not fit would be written beyond the buffers"
    words = x.nbytes // _WORD_BYTES
    constants: dict[str, Constant] = {
        "KIND": _KINDS[x.dtype],
        "RANKS": buffers.ranks,
        "BLOCKS": buffers.blocks,
        "PACKETS": PACKETS,
        "PUSH": push,
        "TAKE": take,
    }
    others = (*buffers.others, *(None,) * (MOST_RANKS - buffers.ranks))
    data = (_words(out), _words(x), None if residual is None else _words(residual))
    args = (*data, buffers.inbox, buffers.epochs, *others, buffers.rank, words)
    return [call("reduce.all_reduce", args, constants, (cdiv(words, PACKETS),), config)]


def _words(x: Tensor) -> Tensor:
    return x.flatten().view(torch.int32)
