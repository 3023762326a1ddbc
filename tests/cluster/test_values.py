"""Sizes and ranks as people write them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.errors import UserError
from cluster.values import rank_numbers, size_bytes


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("0", 0),
        ("123", 123),
        ("123B", 123),
        ("200GB", 200 * 10**9),
        ("1.5 TiB", 3 * 2**39),
        ("2k", 2000),
        (" 7MiB ", 7 * 2**20),
    ],
)
def test_sizes(text: str, num_bytes: int) -> None:
    assert size_bytes("--x", text) == num_bytes


@pytest.mark.parametrize(
    "text", ["", "GB", "-1", "1e9", "1 GBB", "1iB", "nan", "1,000", "9" * 40, "1G 2G", "٣GB"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UserError, match=r"--x=.*not a size; write bytes"):
        size_bytes("--x", text)


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    with contextlib.suppress(UserError):
        assert size_bytes("--x", text) >= 0


@pytest.mark.parametrize(
    ("text", "ranks"), [("0", (0,)), ("3,0", (0, 3)), ("0-2,2", (0, 1, 2)), (" 1 , 3 ", (1, 3))]
)
def test_ranks(text: str, ranks: tuple[int, ...]) -> None:
    assert rank_numbers("--ranks", text, 4) == ranks
