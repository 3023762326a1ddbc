"""Sums over ranks, interpreted: what they give, and that no packet of another call is ever taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from builders.kernels.call import Runner
from builders.kernels.reduce import PACKETS, REDUCE_CONFIG, PeerBuffers, all_reduce, example_buffers
from tests.builders.kernels.peers import buffers_of, push, random_parts, summed, take, together, wide_accesses
from tests.builders.kernels.workers import compiles, pool

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_of_ranks(dtype: torch.dtype, ranks: int, added: bool, run: Runner) -> None:
    """To the bit, and so the same on all of them; the last block is not full."""
    torch.manual_seed(0)
    buffers = buffers_of(ranks, 6)
    parts = [torch.randn(3, 242).to(dtype) for _ in range(ranks)]
    residual = torch.randn(3, 242).to(dtype) if added else None
    outs = [torch.empty_like(part) for part in parts]
    for rank in range(ranks):
        run(push(parts[rank], buffers[rank]))
    for rank in range(ranks):
        run(take(parts[rank], buffers[rank], outs[rank], residual))
    for out in outs:
        assert torch.equal(out, summed(parts, residual))


def test_what_does_not_fit_is_refused() -> None:
    x = torch.zeros(6 * PACKETS + 1)
    with pytest.raises(AssertionError, match="beyond the buffers"):
        push(x, buffers_of(2, 6)[0])


class Group:
    """Ranks that make the same calls; `calls` holds their tensors."""

    def __init__(self, buffers: list[PeerBuffers], calls: list[list[Tensor]], run: Runner) -> None:
        self.buffers, self.calls, self._run = buffers, calls, run
        self.pushed, self.taken = [0] * len(buffers), [0] * len(buffers)
        self._first = int(buffers[0].epochs[0]) + 1

    @property
    def possible(self) -> list[tuple[Callable[[int], None], int]]:
        """What a device could do next; a rank that takes before all have pushed would wait."""
        ranks = range(len(self.buffers))
        idle = [rank for rank in ranks if self.pushed[rank] == self.taken[rank] < len(self.calls)]
        ready = [rank for rank in ranks if self.taken[rank] < min(self.pushed)]
        return [*((self.push, rank) for rank in idle), *((self.take, rank) for rank in ready)]

    def push(self, rank: int) -> None:
        """Others have nothing but packets of two calls ago, then nothing but new ones."""
        x = self.calls[self.pushed[rank]][rank]
        epochs = self.buffers[rank].epochs[: -(-x.nbytes // (4 * PACKETS))] + 1
        before = torch.where(epochs - self._first < 2, 0, epochs - 2)
        self._check_packets(rank, epochs, before)
        self._run(push(x, self.buffers[rank]))
        self._check_packets(rank, epochs, epochs)
        self.pushed[rank] += 1

    def take(self, rank: int) -> None:
        parts = self.calls[self.taken[rank]]
        out = torch.full_like(parts[rank], float("nan"))
        self._run(take(parts[rank], self.buffers[rank], out))
        assert torch.equal(out, summed(parts))
        self.taken[rank] += 1

    def _check_packets(self, rank: int, epochs: Tensor, expected: Tensor) -> None:
        """Of which calls those packets are that the others will take for a rank's next."""
        for other in self.buffers[:rank] + self.buffers[rank + 1 :]:
            found = other.inbox[epochs & 1, rank, torch.arange(len(epochs))] >> 32
            assert torch.equal(found, expected[:, None].expand_as(found).long())


BLOCKS = 3
CALLS = st.lists(
    st.tuples(st.integers(1, BLOCKS * PACKETS), st.sampled_from(DTYPES)), min_size=6, max_size=12
)
"""Words and dtypes: a block, a part of one, several."""


@given(data=st.data(), calls=CALLS, ranks=st.integers(2, 4), before=st.sampled_from([0, -5, 2**31 - 5]))
@settings(deadline=None, max_examples=15)
def test_no_packet_of_another_call_is_taken(
    data: st.DataObject, calls: list[tuple[int, torch.dtype]], ranks: int, before: int, run: Runner
) -> None:
    """Ranks run ahead of others by as much as they can, in any order; counts begin anew at 2^32."""
    parts = [random_parts(ranks, *call, seed) for seed, call in enumerate(calls)]
    group = Group(buffers_of(ranks, BLOCKS, before=before), parts, run)
    while possible := group.possible:
        act, rank = data.draw(st.sampled_from(possible))
        act(rank)
    assert group.taken == [len(calls)] * ranks


def test_ranks_that_wait_for_each_other() -> None:
    """Whole calls by processes that share memory, at their own pace."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(1, BLOCKS * PACKETS, (60,), generator=generator).tolist()
    calls = [random_parts(3, count, DTYPES[number % 3], number) for number, count in enumerate(words)]
    for outs in together(calls, BLOCKS):
        for number, (out, parts) in enumerate(zip(outs, calls, strict=True)):
            assert torch.equal(out, summed(parts)), f"call {number}"


@pytest.mark.parametrize("capability", [80, 90, 120])
def test_packets_are_whole_and_bypass_what_one_device_keeps(
    capability: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What the argument in the kernel rests on, as the compiler makes it: strong accesses, twice 8 bytes."""
    x = torch.empty(1, 4096, dtype=torch.bfloat16, device="meta")
    (call,) = all_reduce(x, example_buffers(4), REDUCE_CONFIG, out=x)
    with pool(interpreted=False, cache=tmp_path_factory.mktemp("compiled")) as workers:
        found = workers.submit(wide_accesses, call.source, capability).result()
    assert found == {"LDG.E.128.STRONG.SYS", "STG.E.128.STRONG.SYS"}


@dataclass(frozen=True)
class Target:
    capability: int
    overlap: bool


TARGETS = [Target(80, False), Target(90, False), Target(90, True), Target(120, True)]


def test_compiles(tmp_path_factory: pytest.TempPathFactory) -> None:
    """For all numbers of ranks that a node is likely to have, and some others."""
    problems = []
    with pool(interpreted=False, cache=tmp_path_factory.mktemp("compiled")) as workers:
        for ranks, target, dtype in [(r, t, d) for r in (2, 3, 4, 8) for t in TARGETS for d in DTYPES]:
            x = torch.empty(1, 4096, dtype=dtype, device="meta")
            config = replace(REDUCE_CONFIG, overlap=target.overlap)
            (call,) = all_reduce(x, example_buffers(ranks), config, out=x, residual=x)
            problem = workers.submit(compiles, call.source, target.capability).result()
            problems += [(ranks, target, dtype, problem)] if problem else []
    assert problems == []
