"""Sampling parameters from options: the same bounds, and what does not go together."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from actors.sampling_params import SamplingParams
from builders.errors import UserError
from cluster.run_choice import barred, check_choice, choice_of
from cluster.run_options import RunOptions
from tests.actors.test_detokenizer import byte_level


def options(*given: str, **changes: Any) -> RunOptions:
    named = frozenset({*given, *changes})
    return RunOptions(**{"engine_dir": Path("engine"), "max_output_len": 4, "given": named, **changes})


def test_greedy_by_default() -> None:
    params = choice_of(options())
    assert params.is_greedy and (params.max_tokens, params.n, params.num_beams) == (4, 1, 1)
    assert params == SamplingParams(max_tokens=4, top_k=1, seed=0, early_stopping=True)


def test_every_option_has_its_parameter() -> None:
    changed = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1, "seed": 3}
    changed |= {"repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.3}
    params = choice_of(options(**changed, num_return_sequences=3, stop_words=["x", "y"]))
    assert {name: getattr(params, name) for name in changed} == changed
    assert (params.n, params.stop, params.logprobs) == (3, ("x", "y"), None)
    assert choice_of(options(output_log_probs_npy=Path("x"))).logprobs == 0


def test_every_beam_is_given_unless_fewer_are_asked_for() -> None:
    assert choice_of(options(num_beams=4)).n == 4
    params = choice_of(options(num_beams=4, num_return_sequences=2, length_penalty=0.5, early_stopping=0))
    assert (params.num_beams, params.n, params.length_penalty) == (4, 2, 0.5)
    assert not params.early_stopping and not check_choice(options(num_beams=4, num_return_sequences=2))


@pytest.mark.parametrize("top_p", [0.0, 1.0])
def test_no_and_all_probabilities_are_off(top_p: float) -> None:
    assert choice_of(options(top_p=top_p)).top_p == 1


BOUNDED = [field for field in dataclasses.fields(RunOptions) if field.metadata.get("min") is not None]


@pytest.mark.parametrize("field", BOUNDED, ids=lambda field: field.name)
def test_what_the_options_allow_the_parameters_allow(field: dataclasses.Field[Any]) -> None:
    """Many beams are for the engine to refuse, and so many that no engine has them."""
    least, most = field.metadata["min"], field.metadata["max"]
    for value in (least, 1000 if most is None else most):
        choice_of(options(**{field.name: value}))


def refusal(**changes: Any) -> str:
    with pytest.raises(UserError) as raised:
        check_choice(options(**changes))
    return str(raised.value)


def test_what_does_not_go_together() -> None:
    assert refusal(num_beams=2, num_return_sequences=3).startswith("--num_return_sequences=3: beam search")
    assert "leave one of them out" in refusal(num_beams=2, output_logits_npy=Path("x"))
    assert "leave one of them out" in refusal(num_beams=2, output_log_probs_npy=Path("x"))
    assert refusal(streaming=True, json=True).startswith("--streaming: ")


@pytest.mark.parametrize("name", ["stop_words", "bad_words"])
def test_bytes_that_are_no_text_are_refused(name: str) -> None:
    told = refusal(**{name: ["fine", b"caf\xe9".decode("utf-8", "surrogateescape")]})
    assert told == f"--{name}='caf\\udce9': not UTF-8; give another text"


def test_options_that_change_nothing_are_noted() -> None:
    (note,) = check_choice(options(temperature=0.7, top_p=0.9))
    assert note.startswith("note: --temperature, --top_p without --top_k")
    assert not check_choice(options(temperature=0.7, top_k=1))
    assert not check_choice(options(temperature=0.7, top_k=0))
    assert not check_choice(options())
    assert not check_choice(options(seed=1))
    (note,) = check_choice(options(num_beams=2, top_k=5, temperature=0.7, length_penalty=2.0))
    assert note.startswith("note: --top_k, --temperature with --num_beams=2: beam search draws nothing")
    (note,) = check_choice(options(length_penalty=2.0, top_k=0))
    assert note.startswith("note: --length_penalty without --num_beams: ")
    assert not check_choice(options(num_beams=2, num_return_sequences=2, early_stopping=0))


def test_words_of_one_token_are_barred() -> None:
    tokenizer = byte_level()
    token = tokenizer.encode(" the")
    assert len(token) == 1
    assert barred([" the"], tokenizer, 400) == {token[0]: -math.inf}
    assert barred([" the"], tokenizer, token[0]) == {}
    assert barred([], None, 400) == {}


def test_words_that_cannot_be_barred_are_refused() -> None:
    with pytest.raises(UserError, match=r"--bad_words='the fox': is \d tokens .* must be one"):
        barred(["the fox"], byte_level(), 400)
    with pytest.raises(UserError, match="--bad_words: the engine has no tokenizer"):
        barred(["the"], None, 400)
