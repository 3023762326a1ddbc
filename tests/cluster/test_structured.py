"""Texts that are held to a form, asked for with the `openai` package: all that comes is checked by others."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jsonschema
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from actors.matchers import byte_words, matcher_of
from actors.open_generator import GeneratorOptions
from cluster.local_app import local_app
from cluster.structured import form_of
from tests.cluster.api_server import TEMPLATE, serving
from tests.cluster.run_engines import Made, make
from tests.cluster.test_encoder import body
from tests.strategies import quick

MESSAGES: Any = [{"role": "user", "content": "the quick"}]
ASKED: Any = {"model": "tiny", "max_tokens": 400}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("structured"))


@pytest.fixture(scope="module")
def client(made: Made) -> Iterator[openai.OpenAI]:
    engine = made.engine("wide", max_seq_len=512, max_batch_size=8)
    app = local_app(engine, name="tiny", generator=GeneratorOptions(num_blocks=300), chat_template=TEMPLATE)
    with serving(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def schema_of(chance: random.Random, depth: int = 2) -> dict[str, Any]:
    """Of values that end."""
    kinds = [_text, _number, _constant, _format] + [_object, _array, _either] * bool(depth)
    return chance.choice(kinds)(chance, depth - 1)


def _text(chance: random.Random, _depth: int) -> dict[str, Any]:
    least = chance.randint(0, 3)
    return {"type": "string", "minLength": least, "maxLength": least + chance.randint(0, 6)}


def _number(chance: random.Random, _depth: int) -> dict[str, Any]:
    least = chance.randint(-500, 500)
    steps = {"multipleOf": chance.choice([2, 5, 7])} if chance.random() < 0.3 else {}
    return {"type": "integer", "minimum": least, "maximum": least + chance.randint(10, 400), **steps}


def _constant(chance: random.Random, _depth: int) -> dict[str, Any]:
    return {"enum": chance.sample([1, -2.5, "a", 'q"uo\\te', "ü", None, True, {"x": [1]}, [], "日本"], 4)}


def _format(chance: random.Random, _depth: int) -> dict[str, Any]:
    patterns = ["^[a-c]{1,4}$", "^(yes|no)$", "^[0-9]{3}-[a-z]{2}$"]
    formats = ["date", "uuid", "ipv4", "time"]
    return {"type": "string"} | chance.choice(
        [{"pattern": chance.choice(patterns)}, {"format": chance.choice(formats)}]
    )


def _object(chance: random.Random, depth: int) -> dict[str, Any]:
    names = chance.sample(["name", "age", "x y", "ключ", 'a"b', "tags"], chance.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: schema_of(chance, depth) for name in names},
        "required": chance.sample(names, chance.randint(0, len(names))),
        "additionalProperties": False,
    }


def _array(chance: random.Random, depth: int) -> dict[str, Any]:
    least = chance.randint(0, 2)
    return {"type": "array", "items": schema_of(chance, depth), "minItems": least, "maxItems": least + 2}


def _either(chance: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [schema_of(chance, depth), {"type": "null"}, {"type": "boolean"}]}


def checked(text: str | None, schema: Any) -> Any:
    assert text is not None
    found = json.loads(text)
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(found)
    return found


def chat(client: openai.OpenAI, form: Any, chance: random.Random) -> list[tuple[str, str | None]]:
    """Texts and why they end, however they are asked for."""
    wish = {
        "temperature": chance.choice([0, 1.0, 1.5]),
        "seed": chance.randint(0, 99),
        "n": chance.randint(1, 3),
    }
    more = {"presence_penalty": 0.5, "top_p": 0.9} if chance.random() < 0.3 else {}
    if chance.random() < 0.5:
        answer = client.chat.completions.create(messages=MESSAGES, extra_body=form, **wish, **more, **ASKED)
        return [(one.message.content or "", one.finish_reason) for one in answer.choices]
    texts: dict[int, list[str]] = {}
    ends: dict[int, str | None] = {}
    stream = client.chat.completions.create(
        messages=MESSAGES, extra_body=form, stream=True, **wish, **more, **ASKED
    )
    for part in stream:
        for one in part.choices:
            texts.setdefault(one.index, []).append(one.delta.content or "")
            ends[one.index] = one.finish_reason
    return [("".join(texts[index]), ends[index]) for index in texts]


@pytest.mark.parametrize("seed", range(40))
def test_texts_are_of_their_schema(seed: int, client: openai.OpenAI) -> None:
    chance = random.Random(seed)
    schema = schema_of(chance)
    wrapped = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    forms = [{"response_format": wrapped}, {"guided_json": schema}, {"structured_outputs": {"json": schema}}]
    for text, end in chat(client, chance.choice(forms), chance):
        assert end == "stop", text
        checked(text, schema)


REGEXES = (
    r"[a-z]{3,9}@[a-z]{2,5}\.(com|org)",
    r"([0-9]{3}-){2}[0-9]{4}",
    r"[A-Z][a-z]{0,5}( [A-Z][a-z]{0,5}){1,3}\.",
)


@pytest.mark.parametrize("seed", range(12))
def test_texts_match_their_expression(seed: int, client: openai.OpenAI) -> None:
    chance = random.Random(seed)
    pattern = chance.choice(REGEXES)
    form = chance.choice([{"guided_regex": pattern}, {"structured_outputs": {"regex": pattern}}])
    for text, end in chat(client, form, chance):
        assert end == "stop" and re.fullmatch(pattern, text), text


@pytest.mark.parametrize("field", ["guided_choice", "choice"])
def test_texts_are_of_a_choice(field: str, client: openai.OpenAI) -> None:
    choice = ["yes", "no (really)", "a|b", "Köln"]
    form = {field: choice} if field == "guided_choice" else {"structured_outputs": {field: choice}}
    answer = client.completions.create(prompt="x", n=8, temperature=2.0, seed=1, extra_body=form, **ASKED)
    assert {one.text for one in answer.choices} <= {*choice}
    assert len({one.text for one in answer.choices}) > 1


def test_any_object(client: openai.OpenAI) -> None:
    """Which may have no end: what there is of it is the beginning of one."""
    answer = client.chat.completions.create(
        messages=MESSAGES, response_format={"type": "json_object"}, temperature=0, **ASKED
    )
    (choice,) = answer.choices
    content = choice.message.content or ""
    assert content.startswith("{")
    assert choice.finish_reason == "length" or isinstance(json.loads(content), dict)


class Step(BaseModel):
    model_config = ConfigDict(extra="forbid")
    what: Literal["add", "sub"]
    by: int = Field(ge=0, le=99)


class Plan(BaseModel):
    model_config = ConfigDict(extra="forbid")
    title: str = Field(max_length=8)
    steps: list[Step] = Field(max_length=3)
    note: str | None = Field(max_length=5)


def test_as_pydantic_has_it(client: openai.OpenAI) -> None:
    """With references to definitions, which the package makes of models."""
    answer = client.chat.completions.parse(messages=MESSAGES, response_format=Plan, seed=1, n=3, **ASKED)
    assert all(isinstance(one.message.parsed, Plan) for one in answer.choices)


def test_stops_and_lengths_count_as_ever(client: openai.OpenAI) -> None:
    wish: Any = {"prompt": "x", "model": "tiny", "temperature": 0, "extra_body": {"guided_regex": "(ab)+c"}}
    cut = client.completions.create(max_tokens=2, logprobs=2, **wish).choices[0]
    assert cut.finish_reason == "length" and cut.logprobs and len(cut.logprobs.tokens or ()) == 2
    stopped = client.completions.create(max_tokens=50, stop="b", **wish).choices[0]
    assert (stopped.text, stopped.finish_reason) == ("a", "stop")


def test_scores_are_the_models_own(client: openai.OpenAI) -> None:
    """As without a form: what would have been said is among the likeliest."""
    wish: Any = {"prompt": "x", "model": "tiny", "temperature": 0, "max_tokens": 1, "logprobs": 1}
    free = client.completions.create(**wish).choices[0].logprobs
    held = client.completions.create(extra_body={"guided_choice": ["{", "}"]}, **wish).choices[0].logprobs
    assert free and held and free.top_logprobs and held.top_logprobs
    assert free.top_logprobs[0].items() <= held.top_logprobs[0].items()
    assert held.token_logprobs and free.token_logprobs and held.token_logprobs < free.token_logprobs


def test_refusals(client: openai.OpenAI) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(
        openai.BadRequestError, match='json_schema: Unimplemented keys: \\["uniqueItems"\\]'
    ) as it:
        client.chat.completions.create(messages=MESSAGES, response_format=form, **ASKED)
    assert it.value.param == "response_format" and "\n" not in it.value.message
    with pytest.raises(openai.BadRequestError, match="not possible with 'use_beam_search'"):
        client.chat.completions.create(
            messages=MESSAGES,
            extra_body={"guided_regex": "a", "use_beam_search": True, "best_of": 2},
            **ASKED,
        )


@quick
@given(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=4))
def test_choices_are_taken_as_they_are(choices: list[str]) -> None:
    """Whatever characters of expressions they have."""
    texts = [one for one in choices if one.encode("utf-8", "ignore").decode() == one]
    if not texts:
        return
    form = form_of(body(messages=[], guided_choice=texts))
    assert form
    matcher = matcher_of(form.grammar, byte_words())
    for text in texts:
        matcher.reset()
        assert matcher.consume_tokens([*text.encode()]) and matcher.is_accepting()


def test_ranks_that_cannot_follow_say_so(client: openai.OpenAI, tmp_path: Path) -> None:
    """What shows only in the middle of a text."""
    properties = {f"p{n}": {"const": n} for n in range(2500)}
    schema = {"type": "array", "items": {"type": "object", "properties": properties}, "minItems": 1}
    with pytest.raises(openai.BadRequestError, match=r"json_schema: .*max is 2000"):
        client.completions.create(prompt="x", extra_body={"guided_json": schema}, **ASKED)
    assert client.completions.create(prompt="x", **ASKED).choices
