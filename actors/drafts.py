"""Guesses at what follows a text, found in the text itself."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST, SHORTEST = 4, 2
"""Tokens that must have occurred before: more make better guesses, fewer make more of them."""


def prompt_lookup(tokens: Sequence[int], most: int) -> tuple[int, ...]:
    """What followed the last tokens where they occurred before, the latest time; at most so many."""
    for length in range(min(LONGEST, len(tokens) - 1), SHORTEST - 1, -1):
        tail = tokens[len(tokens) - length :]
        for start in range(len(tokens) - length - 1, -1, -1):
            if tokens[start] == tail[0] and tokens[start : start + length] == tail:
                return tuple(tokens[start + length : start + length + most])
    return ()


def accepted(drafts: Sequence[int], sampled: Sequence[int]) -> int:
    """How many of the drafts the model would have chosen itself; one more token is sampled than drafted."""
    agreeing = 0
    while agreeing < len(drafts) and drafts[agreeing] == sampled[agreeing]:
        agreeing += 1
    return agreeing
