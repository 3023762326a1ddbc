"""Encoding beside the event loop, and what single tokens stand for."""

from __future__ import annotations

import asyncio
import copy
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from builders.errors import BusyError, UserError
from cluster.api_errors import ApiError
from cluster.api_requests import ChatBody
from cluster.chat_messages import messages_of, tools_of
from cluster.encoder import Encoder
from cluster.pieces import Pieces
from cluster.text_bound import longest_token
from cluster.token_texts import TokenTexts
from tests.actors.test_detokenizer import CORPUS, byte_level, byte_tokens
from tests.cluster.test_sentencepiece import train
from tests.strategies import quick

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


CHANGES = {
    "kept": (normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), 1),
    "composed": (normalizers.NFC(), 4),
    "left out": (normalizers.Strip(), None),
    "replaced": (normalizers.Replace("a", ""), None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_characters_of_a_token(change: str) -> None:
    tokenizer = copy.deepcopy(byte_level())
    normalizer, factor = CHANGES[change]
    tokenizer.backend_tokenizer.normalizer = normalizer
    longest = max(map(len, tokenizer.get_vocab()))
    assert longest_token(tokenizer) == (factor and factor * longest)


def test_tokens_that_stand_for_any_number_of_characters(tmp_path: Path) -> None:
    swallows, words, cuts = (copy.deepcopy(byte_level()) for _ in range(3))
    swallows.add_tokens([AddedToken("<mask>", lstrip=True)])
    assert len(swallows.encode(" " * 1000 + "<mask>")) == 1
    words.backend_tokenizer.model = models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")
    cuts.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pieces = Pieces(train(tmp_path, "bpe", "identity"), begins=True)
    assert [longest_token(one) for one in (swallows, words, cuts, pieces)] == [None] * 4
    assert longest_token(byte_tokens()) is not None


@given(st.text(alphabet="aé😀 \n<s>/|turn日本\u0300\u0313\u0345α", max_size=200))
@quick
def test_no_text_is_refused_that_has_few_enough_tokens(text: str) -> None:
    for tokenizer in (byte_level(), byte_tokens()):
        longest = longest_token(tokenizer)
        assert longest and len(text) <= longest * len(tokenizer.encode(text, add_special_tokens=False))


def test_a_text_that_has_too_many_tokens_is_not_encoded() -> None:
    longest = longest_token(byte_level())
    assert longest
    encoder = Encoder(byte_level(), chat_template="{{ messages[0].content }}", max_tokens=100)
    for text in ("x" * (100 * longest + 1), "x" * 4_000_000):
        with pytest.raises(ApiError) as refused:
            asyncio.run(encoder.text(text))
        assert "no token stands for more" in refused.value.message
        with pytest.raises(ApiError) as refused:
            asyncio.run(encoder.chat([{"role": "user", "content": text}], None))
        assert refused.value.code == "context_length_exceeded"
    assert len(asyncio.run(encoder.text("x" * (100 * longest)))) >= 100


def test_only_so_much_waits_for_the_thread() -> None:
    async def main() -> None:
        encoder = Encoder(byte_level(), max_inline_chars=1, max_waiting_chars=10)
        gate = threading.Event()
        encoder._thread.submit(gate.wait)
        first = asyncio.ensure_future(encoder.text("a" * 1000))  # alone
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="1000 characters of other texts wait"):
            await encoder.text("ab")
        gate.set()
        assert len(await first) > 0
        assert len(await encoder.text("abc")) > 0
        encoder.close()

    asyncio.run(main())


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
