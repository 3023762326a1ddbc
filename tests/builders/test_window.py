"""A sliding window is exactly as wide as Transformers makes it: one token more or less shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedConfig

from builders.limits import Limits, within_window
from builders.mapping import Mapping
from builders.sources.hf import open_folder
from tests.builders.test_engine import LIMITS, build, engines_for_decoders
from tests.builders.test_families import LAYOUTS, Reference, answers, check
from tests.builders.test_trt_network import spec_of
from tests.convert_tools import convert_opened
from tests.oracle import llama, mistral, mixtral, random_model, starcoder2

__all__ = ["engines_for_decoders"]

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


def windowless(window: int, tmp_path: Path) -> Reference:
    """A LLaMA, and what a Mistral says that has its weights and a window."""
    model = random_model(mistral(sliding_window=window))
    twin = LlamaForCausalLM(llama())
    twin.load_state_dict(model.state_dict())
    twin.save_pretrained(tmp_path / "model")
    wanted = answers(model, open_folder(tmp_path / "model"))
    assert wanted.opened.spec.sliding_window is None
    return wanted


@pytest.mark.usefixtures("engines_for_decoders")
@pytest.mark.parametrize("window", [5, PROMPT + 1])
@pytest.mark.parametrize("layout", ["1", "pp2", "tp2pp2"])
def test_an_engine_with_a_window_of_its_own(layout: str, window: int, tmp_path: Path) -> None:
    wanted = windowless(window, tmp_path)
    checkpoint = convert_opened(wanted.opened, LAYOUTS[layout], tmp_path / "out")
    limits = replace(LIMITS, max_attention_window_size=window)
    check(wanted, build(checkpoint, compiled=False, limits=limits))


@pytest.mark.slow
@pytest.mark.usefixtures("engines_for_decoders")
def test_a_compiled_engine_with_a_window_of_its_own(tmp_path: Path) -> None:
    wanted = windowless(5, tmp_path)
    checkpoint = convert_opened(wanted.opened, Mapping(), tmp_path / "out")
    limits = replace(LIMITS, max_attention_window_size=5)
    check(wanted, build(checkpoint, compiled=True, limits=limits))


@pytest.mark.usefixtures("engines_for_decoders")
def test_an_engine_s_window_that_is_off_by_one_is_seen(tmp_path: Path) -> None:
    wanted = windowless(5, tmp_path)
    checkpoint = convert_opened(wanted.opened, Mapping(), tmp_path / "out")
    limits = replace(LIMITS, max_attention_window_size=6)
    with pytest.raises(AssertionError, match="logits differ"):
        check(wanted, build(checkpoint, compiled=False, limits=limits))


@pytest.mark.parametrize(
    ("own", "allowed", "found"),
    [(None, None, None), (None, 5, 5), (7, 5, 5), (5, 7, 5), (7, None, 7), (None, 64, None), (80, 70, 80)],
)
def test_the_smaller_window_counts(own: int | None, allowed: int | None, found: int | None) -> None:
    spec = replace(spec_of("llama2-gqa"), sliding_window=own)
    limits = Limits(max_seq_len=64, max_input_len=32, max_attention_window_size=allowed)
    assert within_window(spec, limits).sliding_window == found
