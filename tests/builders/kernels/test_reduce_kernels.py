"""Sums over ranks, interpreted: what they give, and that no packet of another call is ever taken."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from builders.kernels.call import Runner
from builders.kernels.reduce import MOST_BYTES, PACKETS, PeerBuffers, fits
from tests.builders.kernels.peers import buffers_of, push, summed, take

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_of_ranks(dtype: torch.dtype, ranks: int, added: bool, run: Runner) -> None:
    """To the bit, and the same on all of them; the last block is not full."""
    torch.manual_seed(0)
    buffers = buffers_of(ranks, 6)
    parts = torch.randn(ranks, 3, 242).to(dtype)
    residual = torch.randn(3, 242).to(dtype) if added else None
    outs = torch.empty_like(parts)
    for rank in range(ranks):
        run(push(parts[rank], buffers[rank]))
    for rank in range(ranks):
        run(take(parts[rank], buffers[rank], outs[rank], residual))
    for out in outs:
        assert torch.equal(out, summed(list(parts), residual))


@dataclass
class Group:
    """Ranks that make the same calls, none of them two ahead of another."""

    buffers: list[PeerBuffers]
    run: Runner
    calls: list[list[Tensor]] = field(default_factory=list)
    """The ranks' tensors of every call."""
    pushed: list[int] = field(default_factory=list)
    """Calls by rank."""
    taken: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pushed, self.taken = [0] * len(self.buffers), [0] * len(self.buffers)

    def can_push(self, rank: int) -> bool:
        """As on a device: a call begins when the rank's call before has ended."""
        return self.pushed[rank] == self.taken[rank] and self.pushed[rank] < len(self.calls)

    def can_take(self, rank: int) -> bool:
        """Otherwise it would wait for ever."""
        return self.taken[rank] < min(self.pushed)

    def push(self, rank: int) -> None:
        self.run(push(self.calls[self.pushed[rank]][rank], self.buffers[rank]))
        self.pushed[rank] += 1

    def take(self, rank: int) -> bool:
        """Whether it got the sum of that call's tensors."""
        parts = self.calls[self.taken[rank]]
        out = torch.full_like(parts[rank], float("nan"))
        self.run(take(parts[rank], self.buffers[rank], out))
        self.taken[rank] += 1
        return torch.equal(out, summed(parts))


BLOCKS = 3
SIZES = st.integers(1, BLOCKS * PACKETS)
"""In words: a block, a part of one, several."""


def random_parts(ranks: int, words: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (ranks, words * 4 // dtype.itemsize)
    return list(torch.randint(-8, 8, shape, generator=generator).to(dtype).unbind(0))


@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_no_packet_of_another_call_is_taken(data: st.DataObject, run: Runner) -> None:
    """Any sizes and dtypes, ranks ahead by one call in any order, and counts that begin anew at 2^32."""
    ranks = data.draw(st.integers(2, 4))
    before = data.draw(st.sampled_from([0, -5, 2**31 - 5]))
    group = Group(buffers=buffers_of(ranks, BLOCKS, before=before), run=run)
    for seed, (words, dtype) in enumerate(
        data.draw(st.lists(st.tuples(SIZES, st.sampled_from(DTYPES)), min_size=6, max_size=12))
    ):
        group.calls.append(random_parts(ranks, words, dtype, seed))
    while min(group.taken) < len(group.calls):
        able = [
            (can, rank)
            for rank in range(ranks)
            for can, able in (("push", group.can_push(rank)), ("take", group.can_take(rank)))
            if able
        ]
        what, rank = data.draw(st.sampled_from(able))
        assert group.push(rank) is None if what == "push" else group.take(rank)
