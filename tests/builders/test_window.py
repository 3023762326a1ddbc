"""A sliding window is exactly as wide as Transformers makes it: one token more or less shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedConfig

from builders.mapping import Mapping
from builders.sources.hf import open_folder
from tests.builders.test_families import Reference, answers, check
from tests.convert_tools import convert_opened
from tests.oracle import mistral, mixtral, random_model, starcoder2

FAMILIES: dict[str, Callable[..., PreTrainedConfig]] = {
    "mistral": mistral,
    "starcoder2": starcoder2,
    "mixtral": mixtral,
}
PROMPT = 11
"""Tokens of the prompts that `answers` makes; it goes on for 32 more."""


def reference(family: str, window: int, tmp_path: Path) -> Reference:
    model = random_model(FAMILIES[family](sliding_window=window, num_hidden_layers=2))
    model.save_pretrained(tmp_path / "model")
    wanted = answers(model, open_folder(tmp_path / "model"))
    assert wanted.prompt.shape[1] == PROMPT
    return wanted


@pytest.mark.parametrize("window", [2, 5, PROMPT - 1, PROMPT, PROMPT + 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_window_shorter_and_longer_than_the_prompt(family: str, window: int, tmp_path: Path) -> None:
    """In the prompt's one step, and token by token through the cache."""
    wanted = reference(family, window, tmp_path)
    check(wanted, convert_opened(wanted.opened, Mapping(), tmp_path / "out"))


@pytest.mark.parametrize("more", [-1, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_token_more_or_less_is_seen(family: str, more: int, tmp_path: Path) -> None:
    """The comparison above can fail, and does for a window that is off by one."""
    wanted = reference(family, 5, tmp_path)
    assert wanted.opened.spec.sliding_window == 5
    spec = replace(wanted.opened.spec, sliding_window=5 + more)
    out = convert_opened(replace(wanted.opened, spec=spec), Mapping(), tmp_path / "out")
    with pytest.raises(AssertionError, match="logits differ"):
        check(wanted, out)
