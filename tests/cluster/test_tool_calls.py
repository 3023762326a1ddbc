"""Calls of tools found in texts, in whatever pieces the texts come."""

from __future__ import annotations

import json
import random

import pytest

from cluster.tool_calls import Called, News, ToolReader, whole
from cluster.tool_formats import FORMATS, tool_format
from tests.cluster.tool_models import HERMES, LLAMA

WEATHER = '{"name": "weather", "arguments": {"city": "Köln \\"am\\" Rhein", "days": [1, {"a": "}"}]}}'
CALLED = ("weather", '{"city": "Köln \\"am\\" Rhein", "days": [1, {"a": "}"}]}')
LLAMAS = WEATHER.replace("arguments", "parameters")
CASES = [
    ("hermes", "Hello there.", "Hello there.", []),
    ("hermes", "", "", []),
    ("hermes", f"<tool_call>\n{WEATHER}\n</tool_call>", None, [CALLED]),
    ("hermes", f"<tool_call>{WEATHER}</tool_call>\n<tool_call>\n{WEATHER}</tool_call>", None, [CALLED] * 2),
    ("hermes", f"Let me see. <tool_call>\n{WEATHER}\n</tool_call>", "Let me see. ", [CALLED]),
    ("hermes", f"<tool_call>\n{WEATHER}", None, [CALLED]),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', None, [("f", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', None, [("f", "{}")]),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
        None,
        [("f", '{"a": 1}')],
    ),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a"', None, [("f", '{"a"')]),
    ("hermes", '<tool_call>{"nam', '<tool_call>{"nam', []),
    ("hermes", "a <tool_cal", "a <tool_cal", []),
    ("hermes", "1 < 2 <tool", "1 < 2 <tool", []),
    ("hermes", "<tool_call>what?</tool_call>", "<tool_call>what?</tool_call>", []),
    ("hermes", '<tool_call>{"x": 1}</tool_call>!', '<tool_call>{"x": 1}</tool_call>!', []),
    ("hermes", WEATHER, WEATHER, []),
    ("llama3_json", "Hello {there}.", "Hello {there}.", []),
    ("llama3_json", LLAMAS, None, [CALLED]),
    ("llama3_json", f"<|python_tag|>{LLAMAS}", None, [CALLED]),
    ("llama3_json", f"{LLAMAS}; {LLAMAS}", None, [CALLED] * 2),
    ("llama3_json", f"\n{WEATHER}", None, [CALLED]),
    ("llama3_json", '{"answer": 42}', '{"answer": 42}', []),
    ("llama3_json", '{"answer": 42', '{"answer": 42', []),
    ("llama3_json", '{"answer": {"name": "f"}} yes', '{"answer": {"name": "f"}} yes', []),
]


@pytest.mark.parametrize(("form", "text", "said", "calls"), CASES)
@pytest.mark.parametrize("seed", range(8))
def test_a_text(form: str, text: str, said: str | None, calls: list[tuple[str, str]], seed: int) -> None:
    chance, reader, news = random.Random(seed), ToolReader(FORMATS[form]), []
    rest = text
    while rest:
        size = {0: 1, 1: len(rest)}.get(seed, chance.randint(1, 9))
        news += reader.add(rest[:size])
        rest = rest[size:]
    news += reader.add("", is_last=True)
    found = whole(news)
    assert (found[0] or None, found[1]) == (said or None, calls)
    assert reader.num_calls == len(calls)


def test_arguments_come_as_they_are_written() -> None:
    """A caller sees them grow."""
    reader = ToolReader(FORMATS["hermes"])
    assert reader.add('<tool_call>{"name": "f", "argu') == []
    (called, *_) = reader.add('ments": {"a": ')
    assert called == Called(0, "f")
    pieces = [reader.add(one) for one in ('"x', 'yz"', "}}")]
    assert ["".join(getattr(one, "text", "") for one in news) for news in pieces] == ['"x', 'yz"', "}"]


def test_only_so_many_calls() -> None:
    reader = ToolReader(FORMATS["llama3_json"], most=1)
    news: list[News] = reader.add(f"{LLAMAS}; {LLAMAS}", is_last=True)
    assert whole(news) == (None, [CALLED])


def test_the_format_is_in_the_template() -> None:
    assert [one and one.name for one in (tool_format(HERMES, None), tool_format(LLAMA, None))] == [
        "hermes",
        "llama3_json",
    ]
    assert tool_format("{{ messages }}", None) is None and tool_format(HERMES, "none") is None
    assert tool_format(None, "llama3_json") == FORMATS["llama3_json"]
    assert json.loads(CALLED[1])["days"] == [1, {"a": "}"}]
