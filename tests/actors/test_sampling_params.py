"""Sampling parameters: what is refused, in which words, and what counts as greedy."""

from __future__ import annotations

import math
from typing import Any

import pytest

from actors.sampling_params import SamplingParams
from builders.errors import UserError


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ({"max_tokens": 0}, "max_tokens=0: must be at least 1"),
        ({"temperature": -0.5}, "temperature=-0.5: must be from 0 to 100"),
        ({"temperature": math.nan}, "temperature=nan: must be from 0 to 100"),
        ({"top_p": 0.0}, "top_p=0.0: must be from 1e-09 to 1"),
        ({"min_p": 1.5}, "min_p=1.5: must be from 0 to 1"),
        ({"presence_penalty": 3.0}, "presence_penalty=3.0: must be from -2 to 2"),
        ({"logprobs": 1001}, "logprobs=1001: must be from 0 to 1000"),
        ({"n": 0}, "n=0: must be from 1 to 1024"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens=5: more than max_tokens=4"),
        ({"n": 3, "num_beams": 2}, "n=3: more than num_beams=2"),
        ({"prompt_logprobs": 1001}, "prompt_logprobs=1001: must be from 0 to 1000"),
        (
            {"prompt_logprobs": 0, "num_beams": 2},
            "prompt_logprobs=0: not with num_beams=2; use num_beams=1",
        ),
        ({"logprobs": 0, "num_beams": 2}, "logprobs=0: not with num_beams=2; use num_beams=1"),
        ({"logits": True, "num_beams": 4}, "logits=True: not with num_beams=4; use num_beams=1"),
    ],
)
def test_mistakes_are_named(mistake: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        SamplingParams(**mistake)
    assert str(caught.value) == words


def test_bounds_themselves_are_taken() -> None:
    SamplingParams(temperature=100, top_p=1, min_p=1, seed=-(2**63), n=2, num_beams=2, min_tokens=16)


@pytest.mark.parametrize(
    ("given", "greedy"),
    [({"temperature": 0}, True), ({"top_k": 1}, True), ({}, False), ({"top_k": 2}, False)],
)
def test_greedy(given: dict[str, Any], greedy: bool) -> None:
    assert SamplingParams(**given).is_greedy is greedy
