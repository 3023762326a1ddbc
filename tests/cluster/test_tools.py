"""Tools through the API with the `openai` package: forced calls fit their functions, the others are found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from tokenizers import AddedToken

from actors.open_generator import GeneratorOptions
from cluster.api_config import ApiConfig
from cluster.local_app import local_app
from tests.actors.test_detokenizer import byte_level
from tests.cluster.api_server import TEMPLATE, fake_app, serving
from tests.cluster.fake_engine import FakeEngine
from tests.cluster.run_engines import make
from tests.cluster.tool_models import HERMES, LLAMA

MESSAGES: Any = [{"role": "user", "content": "the quick"}]
CITY = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"City": {"enum": ["Köln", "Ulm"]}},
}
WEATHER = {"name": "weather", "description": "?", "parameters": CITY, "strict": True}
TOOLS: Any = [
    {"type": "function", "function": WEATHER},
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "maxProperties": 0}}},
]
NOT = {"type": "function", "function": {**WEATHER, "parameters": {"type": "object", "not": {}}}}
SCHEMAS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
ASKED: Any = {"model": "tiny", "max_tokens": 400, "messages": MESSAGES, "tools": TOOLS}


@pytest.fixture(scope="module", params=["hermes", "hermes-added", "hermes-special", "llama3_json"])
def client(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """The marks are text, or tokens of their own, special or not."""
    made = make(tmp_path_factory.mktemp("tools"))
    engine = made.engine("wide", max_seq_len=1400, max_input_len=900, max_num_tokens=900)
    if kind := request.param.partition("-")[2]:
        marks = [AddedToken(name, special=kind == "special") for name in ("<tool_call>", "</tool_call>")]
        made.tokenizer.add_tokens(marks)  # type: ignore[arg-type]
        assert len(made.tokenizer) <= 410
        made.tokenizer.save_pretrained(engine / "tokenizer")
    app = local_app(
        engine,
        name="tiny",
        generator=GeneratorOptions(num_blocks=500),
        chat_template=HERMES if request.param.startswith("hermes") else LLAMA,
    )
    with serving(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client
    byte_level.cache_clear()


def check_calls(calls: Any) -> list[str]:
    for call in calls:
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
        assert call.id.startswith("call_") and call.type == "function"
    assert len({call.id for call in calls}) == len(calls)
    return [call.function.name for call in calls]


@pytest.mark.parametrize("seed", range(4))
def test_a_call_is_required(seed: int, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(tool_choice="required", seed=seed, n=2, **ASKED)
    for choice in answer.choices:
        assert choice.finish_reason in ("tool_calls", "length") and choice.message.content is None
        if choice.finish_reason == "tool_calls":
            assert check_calls(choice.message.tool_calls)


def test_one_call_and_no_more(client: openai.OpenAI) -> None:
    wish: Any = {"tool_choice": "required", "parallel_tool_calls": False, "temperature": 0}
    answer = client.chat.completions.create(**wish, **ASKED)
    assert len(check_calls(answer.choices[0].message.tool_calls)) == 1
    assert answer.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("name", ["weather", "stop"])
def test_a_call_of_this_function(name: str, client: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "function": {"name": name}}
    answer = client.chat.completions.create(tool_choice=choice, seed=1, n=3, **ASKED)
    assert [check_calls(one.message.tool_calls) for one in answer.choices] == [[name]] * 3


def test_a_streamed_call(client: openai.OpenAI) -> None:
    """As the package puts it together."""
    wish: Any = {"tool_choice": "required", "parallel_tool_calls": False, "temperature": 0}
    whole = client.chat.completions.create(**wish, **ASKED).choices[0].message
    assert whole.tool_calls
    with client.chat.completions.stream(**wish, **ASKED) as stream:
        events = list(stream)
        found = stream.get_final_completion().choices[0]
    assert found.message.tool_calls and check_calls(found.message.tool_calls)
    assert found.message.tool_calls[0].function.arguments == whole.tool_calls[0].function.arguments
    assert found.finish_reason == "tool_calls" and not found.message.content
    assert any(event.type == "tool_calls.function.arguments.done" for event in events)


def test_an_answer_or_calls(client: openai.OpenAI) -> None:
    """With a form for the answer, the model may choose."""
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [1, 2]}}}
    answer = client.chat.completions.create(response_format=form, seed=3, n=4, temperature=1.5, **ASKED)
    for choice in answer.choices:
        calls = check_calls(choice.message.tool_calls or [])
        assert calls or json.loads(choice.message.content or "") in (1, 2)


def test_calls_go_back_to_the_template(client: openai.OpenAI) -> None:
    """A conversation goes on after a call, as LangChain and others write it."""
    call = {"id": "call_1", "type": "function", "function": {"name": "stop", "arguments": "{}"}}
    messages: Any = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "stopped"},
    ]
    answer = client.chat.completions.create(**{**ASKED, "messages": messages, "max_tokens": 3})
    assert answer.usage and answer.usage.completion_tokens


TEXT = 'Well. <tool_call>\n{"name": "weather", "arguments": {"city": "Ulm", "days": 2}}\n</tool_call>'


@pytest.fixture(scope="module")
def fake() -> Iterator[openai.OpenAI]:
    """Says what it is told, whatever it is asked; the last token is said in place of an end."""
    tokens = tuple(byte_level().encode(TEXT, add_special_tokens=False))
    app = fake_app(FakeEngine(tokens), config=ApiConfig(max_tools=2), chat_template=HERMES)
    with serving(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_calls_are_found(fake: openai.OpenAI) -> None:
    number = len(byte_level().encode(TEXT, add_special_tokens=False))
    wish = {**ASKED, "model": "fake", "max_tokens": number, "logprobs": True}
    wish["extra_body"] = {"ignore_eos": True}  # the fake engine has others
    (choice,) = fake.chat.completions.create(**wish).choices
    assert (choice.message.content, check_calls(choice.message.tool_calls)) == ("Well. ", ["weather"])
    deltas = [part.choices[0].delta for part in fake.chat.completions.create(stream=True, **wish)]
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert "".join(delta.content or "" for delta in deltas) == "Well. "
    assert [call.function.name for call in calls if call.function and call.function.name] == ["weather"]
    arguments = [call.function.arguments or "" for call in calls if call.function]
    assert json.loads("".join(arguments)) == {"city": "Ulm", "days": 2} and len(arguments) > 3
    assert choice.logprobs and choice.logprobs.content and len(choice.logprobs.content) == number
    plain = fake.chat.completions.create(**{**wish, "tool_choice": "none"}).choices[0].message
    assert (plain.content, plain.tool_calls) == (TEXT, None)


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"tool_choice": "any"}, "tool_choice", "Supported values"),
    ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice", "Supported values"),
    ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "'x' not found"),
    ({"tool_choice": "required", "tools": None}, "tool_choice", "only allowed when 'tools'"),
    ({"tools": [TOOLS[0]] * 3}, "tools", "at most 2"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "letters"),
    ({"tool_choice": "required", "use_beam_search": True}, "tool_choice", "use_beam_search"),
    ({"extra_body": {"guided_regex": "a"}}, "guided_regex", "not possible with 'tools'"),
    ({"tool_choice": "required", "tools": [NOT]}, "tools", 'Unimplemented keys: ["not"]'),
]


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED)
def test_refusals(fields: dict[str, Any], param: str, words: str, fake: openai.OpenAI) -> None:
    extra = {name: fields[name] for name in ("use_beam_search",) if name in fields}
    plain = {name: value for name, value in fields.items() if name not in extra}
    with pytest.raises(openai.BadRequestError) as refused:
        fake.chat.completions.create(**{**ASKED, "model": "fake", "extra_body": extra, **plain})
    assert refused.value.param == param and words in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("template", "choice", "param"),
    [("{{ messages }}", "auto", "tools"), (TEMPLATE, "required", "tool_choice"), (None, "required", "tools")],
)
def test_models_without_tools_say_so(template: str | None, choice: str, param: str) -> None:
    with serving(fake_app(FakeEngine((40,)), chat_template=template)) as url:
        body = {**ASKED, "model": "fake", "tool_choice": choice}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


def test_what_strict_leaves_out(client: openai.OpenAI, tmp_path: Path) -> None:
    """A schema that no grammar can keep is kept as far as it goes, unless it is strict."""
    parameters = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "not": {}}
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    wish = {**ASKED, "tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    answer = client.chat.completions.create(**{**wish, "temperature": 0})
    (call,) = answer.choices[0].message.tool_calls or ()
    assert json.loads(call.function.arguments)["a"] == 1  # type: ignore[union-attr]
    tool["function"]["strict"] = True
    with pytest.raises(openai.BadRequestError, match="Unimplemented keys"):
        client.chat.completions.create(**wish)
