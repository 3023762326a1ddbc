"""Encoding beside the event loop, and what single tokens stand for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from builders.errors import UserError
from cluster.api_errors import ApiError
from cluster.api_requests import ChatBody
from cluster.chat_messages import messages_of, tools_of
from cluster.encoder import Encoder
from cluster.pieces import Pieces
from cluster.token_texts import TokenTexts
from tests.actors.test_detokenizer import CORPUS, byte_level, byte_tokens
from tests.cluster.test_sentencepiece import train

TEXTS = [*CORPUS[:4], "", "x", " ".join(CORPUS), "half �", "<|turn|> and <s>"]


@pytest.mark.parametrize("inline", [1, 10**6])
@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("kind", [byte_level, byte_tokens])
def test_tokens_are_the_tokenizers_own(kind: Any, special: bool, inline: int) -> None:
    tokenizer = kind()
    encoder = Encoder(tokenizer, max_inline_chars=inline)

    async def encoded() -> list[list[int]]:
        return [list(await encoder.text(text, special=special)) for text in TEXTS]

    assert asyncio.run(encoded()) == [tokenizer.encode(text, add_special_tokens=special) for text in TEXTS]
    encoder.close()


def test_settings_of_earlier_calls_do_not_count() -> None:
    tokenizer = byte_level()
    tokenizer(CORPUS[:2], truncation=True, max_length=3)
    encoder = Encoder(tokenizer)
    assert list(asyncio.run(encoder.text(CORPUS[0]))) == tokenizer.encode(CORPUS[0])


@pytest.mark.parametrize("kind", [byte_level, byte_tokens])
def test_tokens_together_are_the_text(kind: Any) -> None:
    tokenizer = kind()
    texts = TokenTexts(tokenizer)
    for text in CORPUS:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        found = b"".join(texts.spelling(token) for token in tokens).decode()
        assert found.removeprefix(" ") == text


def test_labels_of_tokens() -> None:
    texts = TokenTexts(byte_level())
    alone = byte_level().convert_tokens_to_ids("ð")
    assert (texts.text(alone), texts.label(alone)) == ("�", "bytes:\\xf0")
    assert texts.label(byte_level().eos_token_id) == "</s>"
    assert texts.label(10**6) == ""


def body(**fields: Any) -> ChatBody:
    return msgspec.convert({"model": "x", **fields}, ChatBody)


def test_messages_as_templates_expect_them() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    given = [
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "3", "tool_call_id": "1", "name": "f"},
    ]
    assert messages_of(body(messages=given).messages) == [
        {"role": "system", "content": "a\nb"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{**call, "function": {"name": "f", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "content": "3", "tool_call_id": "1", "name": "f"},
    ]


def test_tools_are_as_they_were_given() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "x": [1]}}}
    assert tools_of(body(messages=[], tools=[tool])) == [tool]
    assert tools_of(body(messages=[], tools=[tool], tool_choice="none")) is None
    with pytest.raises(ApiError) as refused:
        tools_of(body(messages=[], tools=[tool], tool_choice={"type": "function"}))
    assert refused.value.param == "tool_choice"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[0].nothing.more }}",
        "{{ 1 // 0 }}",
        "{{ ''.__class__.__mro__ }}",
    ],
)
def test_templates_that_fail(template: str) -> None:
    encoder = Encoder(byte_level(), chat_template=template)
    with pytest.raises(UserError, match="the model's chat template refuses them"):
        asyncio.run(encoder.chat([{"role": "user", "content": "x"}], None))


def test_a_sentencepiece_model(tmp_path: Path) -> None:
    """One that is no tokenizer of Rust."""
    pieces = Pieces(train(tmp_path, "bpe", "identity"), begins=True)
    for inline in (1, 10**6):
        encoder = Encoder(pieces, max_inline_chars=inline)
        assert list(asyncio.run(encoder.text("the quick é"))) == pieces.encode("the quick é")
        encoder.close()
    texts = TokenTexts(pieces)
    tokens = pieces.encode("the quick é😀", add_special_tokens=False)
    assert b"".join(map(texts.spelling, tokens)).decode().strip() == "the quick é😀"
