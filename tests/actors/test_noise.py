"""The hash's numbers are distributed as they should be, and depend on what they should."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from actors.noise import gumbel, places
from tests.strategies import quick

VOCAB = places(1000, "cpu")


def drawn(seeds: Tensor, positions: Tensor, vocab: Tensor = VOCAB) -> Tensor:
    return gumbel(*torch.broadcast_tensors(seeds, positions), vocab)


def is_uniform(values: Tensor, bins: int = 256) -> bool:
    """A chi-square test at one in ten thousand, for many bins nearly normal. values in [0, 1)."""
    counts = torch.histc(values.double().flatten(), bins, 0, 1)
    expected = values.numel() / bins
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    return abs(statistic - (bins - 1)) < 3.9 * math.sqrt(2 * (bins - 1))


def uniform(noise: Tensor) -> Tensor:
    """Gumbel's distribution function takes it to what is uniform."""
    return (-(-noise.double()).exp()).exp()


def test_is_distributed_as_gumbel_along_every_axis() -> None:
    few = torch.arange(1000)
    for seeds, positions in ((few, torch.tensor(0)), (torch.tensor(0), few), (few * 2**40, few), (-few, few)):
        values = uniform(drawn(seeds, positions))
        assert is_uniform(values)
        assert is_uniform(values[:, 0])
        assert is_uniform(values[0])


def test_neighbours_are_independent() -> None:
    """Pairs of neighbouring seeds, positions and tokens fill a square evenly."""
    few = torch.arange(1000)
    for noise in (drawn(few, torch.tensor(5)), drawn(torch.tensor(5), few), drawn(few, few)):
        values = uniform(noise)
        for one, other in ((values[1:], values[:-1]), (values[:, 1:], values[:, :-1])):
            assert is_uniform(((one * 16).floor() * 16 + (other * 16).floor()) / 256)


def test_small_tails_are_there() -> None:
    """The largest of ten million: what lets unlikely tokens win."""
    noise = drawn(torch.arange(100), torch.tensor(0), places(100_000, "cpu"))
    assert noise.isfinite().all()
    assert 13 < noise.max() < 24
    assert noise.unique().numel() > 0.9 * 2**22


def test_depends_on_nothing_else() -> None:
    seeds, positions = torch.arange(8), torch.arange(8) + 100
    together = gumbel(seeds, positions, VOCAB)
    for row in range(8):
        assert gumbel(seeds[row, None], positions[row, None], VOCAB)[0].equal(together[row])
    assert gumbel(seeds, positions, VOCAB[300:]).equal(together[:, 300:])


def test_the_hash_stays_what_it_is() -> None:
    """Later versions must give the same: texts of a seed depend on it."""
    noise = gumbel(torch.tensor([7, -1]), torch.tensor([3, 2**31]), places(3, "cpu"))
    expected = torch.tensor([[1.1252249, 1.3786939, 0.8058345], [-0.7949514, -0.5428942, -1.1654824]])
    torch.testing.assert_close(noise, expected, rtol=1e-6, atol=1e-6)


@quick
@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40), st.integers(0, 2**20))
def test_is_the_hash_in_plain_integers(seed: int, position: int, token: int) -> None:
    """What a kernel must compute."""
    found = gumbel(torch.tensor([seed]), torch.tensor([position]), torch.tensor([token], dtype=torch.int32))
    key = mixed((mixed(seed % 2**64) + position) % 2**64)
    bits = token ^ key % 2**32
    bits = ((bits ^ bits >> 16) * 0x21F0AAAD % 2**32) ^ key >> 32
    bits = (bits ^ bits >> 15) * 0xD35A2D97 % 2**32
    uniform = ((bits ^ bits >> 15) % 2**31 + 0.5) * 2**-31
    expected = -math.log(-math.log1p(-uniform))
    # Near one, a float32 has few digits left for the probability of more than that.
    assert abs(found.item() - expected) < 1e-5 + 2**-22 / (1 - uniform)


def mixed(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31
