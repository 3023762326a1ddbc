"""Figures from when tokens came, by hand."""

from __future__ import annotations

import pytest

from benchmarks.runtime_cases import SHAPES, Case, floor_cases
from benchmarks.runtime_figures import Arrival, Figures, Pass, medians
from benchmarks.runtime_options import parsed

CASE = Case(batch=2, tokens_in=10, tokens_out=4)


def arrivals(**times: list[float]) -> list[Arrival]:
    found = [Arrival(at_s=at, text=text, tokens=1) for text, every in times.items() for at in every]
    return sorted(found, key=lambda one: one.at_s)


def test_texts_that_do_not_begin_and_end_together() -> None:
    """Both decode from b's first token, at 12, to a's last, at 18."""
    found = Pass(
        case=CASE,
        asked_s={"a": 10.0, "b": 10.5},
        arrivals=arrivals(a=[11, 12, 14, 18], b=[12, 14, 18, 30]),
    ).figures()
    assert found.first_token_s == (1.0 + 1.5) / 2
    assert found.last_first_token_s == 1.5
    assert found.decode_step_s == (2 + 4) / 2, "gaps of 2 and 4, of each text"
    assert found.decode_tokens_per_s == 4 / 6, "what came at 14 and 18; not what came at 12"
    assert found.output_tokens_per_s == 8 / 20
    assert found.prefill_tokens_per_s == 20 / 2


def test_stages_that_take_turns_give_a_text_a_token_every_second_step() -> None:
    found = Pass(
        case=CASE, asked_s={"a": 0.0, "b": 0.0}, arrivals=arrivals(a=[1, 3, 5, 7], b=[2, 4, 6, 8])
    ).figures()
    assert found.decode_step_s == 2
    assert found.decode_tokens_per_s == 5 / 5


def test_several_tokens_at_once_count_each() -> None:
    came = [Arrival(at_s=at, text="a", tokens=tokens) for at, tokens in ((1.0, 1), (2.0, 3), (3.0, 2))]
    case = Case(batch=1, tokens_in=1, tokens_out=6)
    found = Pass(case=case, asked_s={"a": 0.0}, arrivals=came).figures()
    assert (found.decode_step_s, found.decode_tokens_per_s, found.output_tokens_per_s) == (1, 5 / 2, 2)


def test_one_token_each_decodes_nothing() -> None:
    case = Case(batch=1, tokens_in=4, tokens_out=1)
    found = Pass(case=case, asked_s={"a": 0.0}, arrivals=arrivals(a=[2.0])).figures()
    assert (found.decode_step_s, found.decode_tokens_per_s, found.prefill_tokens_per_s) == (None, None, 2)


def test_medians_are_of_what_is_known() -> None:
    several = [
        Figures(first_token_s=3.0, decode_step_s=1.0),
        Figures(first_token_s=1.0),
        Figures(first_token_s=2.0),
    ]
    assert medians(several) == Figures(first_token_s=2.0, decode_step_s=1.0)


def test_no_prompt_begins_like_another_of_its_case_or_of_other_turns() -> None:
    case = Case(batch=50, tokens_in=40, tokens_out=1)
    prompts = [prompt for turn in range(4) for prompt in case.prompts(512, turn)]
    assert len({prompt[:8] for prompt in prompts}) == 200
    assert {len(prompt) for prompt in prompts} == {40}
    assert all(0 <= token < 512 for prompt in prompts for token in prompt)
    assert case.prompts(512, 1) == case.prompts(512, 1)


def test_the_floor_is_asked_for_few_tokens() -> None:
    asked = floor_cases(SHAPES["llama-8b"].cases, 32)
    assert [str(case) for case in asked] == ["1, 128, 32", "8, 32, 32", "64, 512, 32"]


def test_one_engine_does_every_case() -> None:
    limits = parsed("", ["--cases", "1,128,256", "300,512,16"]).limits
    assert (limits.max_batch_size, limits.max_input_len, limits.max_seq_len) == (300, 512, 528)
    assert limits.max_num_tokens == 8192


def test_peers_are_of_the_whole_shape_on_a_device() -> None:
    assert parsed("", ["--target", "cuda"]).on_record
    assert not parsed("", ["--target", "cpu"]).on_record
    assert not parsed("", ["--target", "cuda", "--shape", "llama-70b"]).on_record
    fewer = parsed("", ["--target", "cuda", "--layers", "2"])
    assert not fewer.on_record
    assert fewer.shape.config["num_hidden_layers"] == 2


@pytest.mark.parametrize(
    ("arguments", "cases"),
    [
        (["--batch", "1,8", "--tokens_in", "5"], ["1, 5, 128", "8, 5, 128"]),
        (["--context", "32768"], ["1, 32768, 64", "8, 32768, 64"]),
        (["--shape", "tiny"], ["1, 8, 8", "8, 8, 8"]),
    ],
)
def test_cases_that_are_asked_for(arguments: list[str], cases: list[str]) -> None:
    assert [str(case) for case in parsed("", arguments).cases] == cases
