"""Prompt lookup: the longest match counts, then the latest, and only what the model agrees with is taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.drafts import LONGEST, SHORTEST, accepted, prompt_lookup


@pytest.mark.parametrize(
    ("tokens", "most", "drafts"),
    [
        ([1, 2, 3, 4, 1, 2], 2, (3, 4)),
        ([1, 2, 3, 4, 1, 2], 9, (3, 4, 1, 2)),
        ([1, 2, 3, 1, 2, 4, 1, 2], 1, (4,)),
        ([9, 1, 2, 3, 8, 1, 2, 4, 9, 1, 2], 1, (3,)),
        ([5, 5, 5], 3, (5,)),
        ([1, 2, 3, 1], 3, ()),
        ([1], 3, ()),
        ([1, 2, 1, 2], 0, ()),
    ],
)
def test_prompt_lookup(tokens: list[int], most: int, drafts: tuple[int, ...]) -> None:
    assert prompt_lookup(tokens, most) == drafts


@given(st.lists(st.integers(1, 3), min_size=1, max_size=30), st.integers(1, 5))
def test_what_is_found_did_follow(tokens: list[int], most: int) -> None:
    drafts = prompt_lookup(tokens, most)
    assert len(drafts) <= most
    followed = {
        tuple(tokens[end : end + most])
        for length in range(SHORTEST, LONGEST + 1)
        for end in range(length, len(tokens))
        if tokens[end - length : end] == tokens[-length:]
    }
    assert drafts in followed if drafts else not followed


def test_accepted_are_those_before_the_first_difference() -> None:
    assert accepted((4, 5, 6), (4, 5, 6, 7)) == 3
    assert accepted((4, 5, 6), (4, 9, 6, 7)) == 1
    assert accepted((4,), (5, 6)) == 0
    assert accepted((), (5,)) == 0
