"""Logits in parts, on ranks that are threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from actors.vocabulary import gathered, greedy
from builders.ops import Communicator
from tests.sim import ThreadGroup, same
from tests.strategies import quick


def on_ranks(parts: list[Tensor], run: Callable[[Tensor, int, Communicator], Tensor]) -> Tensor:
    """What all ranks agree on."""
    group, ranks = ThreadGroup(len(parts)), range(len(parts))
    with ThreadPoolExecutor(len(parts)) as pool:
        return same(list(pool.map(run, parts, ranks, [group.member(rank) for rank in ranks])))


@quick
@given(st.integers(0, 2**31), st.sampled_from([1, 2, 3, 4, 8]), st.integers(1, 5), st.data())
def test_parts_give_what_the_whole_gives(seed: int, ranks: int, rows: int, data: st.DataObject) -> None:
    """With equals among the likeliest, and padding that would win, on several ranks or on all of one."""
    width = data.draw(st.integers(1, 9))
    vocab_size = data.draw(st.integers(1, ranks * width))
    padded = torch.randint(
        -3, 3, (rows, ranks * width), generator=torch.Generator().manual_seed(seed)
    ).float()
    padded[:, vocab_size:] = 100
    parts = list(padded.split(width, dim=1))
    whole = padded[:, :vocab_size]
    assert on_ranks(parts, lambda part, _, comm: gathered(part, vocab_size, comm)).equal(whole)
    found = on_ranks(parts, lambda part, rank, comm: greedy(part, rank, vocab_size, comm))
    assert found.equal(whole.argmax(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_large_tokens_survive_as_bits(dtype: torch.dtype) -> None:
    logits = torch.zeros(3, 1 << 18, dtype=dtype)
    logits[0, 200_003], logits[1, 1], logits[2, (1 << 18) - 1] = 1, 1, 1
    parts = list(logits.split(1 << 16, dim=1))
    found = on_ranks(parts, lambda part, rank, comm: greedy(part, rank, 1 << 18, comm))
    assert found.tolist() == [200_003, 1, (1 << 18) - 1]
