"""Tokens as bytes: what grammars see of a text is what the tokenizer makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from llguidance.numpy import fill_next_token_bitmask
from tokenizers import AddedToken
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

from actors.grammar import Grammar
from actors.grammar_words import open_words
from actors.matchers import matcher_of
from builders.errors import UserError
from cluster.pieces import Pieces
from tests.actors.test_detokenizer import CORPUS, byte_level, byte_tokens
from tests.cluster.test_sentencepiece import train

TEXTS = [*dict.fromkeys(CORPUS), '{"a": [1, 2.5e3, null]}\n\t', "x" * 40]


@pytest.mark.parametrize("kind", [byte_level, byte_tokens])
def test_words_of_a_fast_tokenizer(kind: Callable[[], PreTrainedTokenizerFast], tmp_path: Path) -> None:
    """Tokenizers as LLaMA's put a space before a text, which they do not show."""
    tokenizer = kind()
    tokenizer.save_pretrained(tmp_path)
    words = open_words(tmp_path, 500, [tokenizer.eos_token_id])
    for text in TEXTS:
        found = words.decode_bytes(tokenizer.encode(text, add_special_tokens=False))
        assert found.removeprefix(b" " if kind is byte_tokens else b"") == text.encode()
    assert words.vocab_size == 500 and words.eos_tokens == [tokenizer.eos_token_id]
    assert words.is_special_token(tokenizer.bos_token_id) and not words.is_special_token(40)


def test_text_that_reads_like_an_added_token(tmp_path: Path) -> None:
    """It is text, and said in other tokens."""
    tokenizer = byte_level()
    tokenizer.save_pretrained(tmp_path)
    words = open_words(tmp_path, 500, [tokenizer.eos_token_id])
    for text in ("<plain>", "a<|turn|>b", "</s>", "the quick <s>"):
        schema = json.dumps({"const": text})
        matcher = matcher_of(Grammar(kind="json_schema", text=schema), words)
        bits, said = np.zeros((1, 16), dtype=np.int32), []
        while not matcher.is_stopped():
            fill_next_token_bitmask(matcher, bits)
            allowed = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))
            said.append(int(allowed[-1]))
            assert matcher.consume_token(said[-1]), text
        assert tokenizer.decode(said) == json.dumps(text)


def test_words_that_only_the_settings_name(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    number = len(tokenizer)
    more = AddedToken("<tool>", special=True)
    settings["added_tokens_decoder"] = {str(number): {"content": more.content, "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    words = open_words(tmp_path, number + 1, [tokenizer.eos_token_id])
    assert words.is_special_token(number) and "<tool>" in words.dbg_tokens([number])


def test_words_of_a_bare_vocabulary(tmp_path: Path) -> None:
    byte_level().backend_tokenizer.model.save(str(tmp_path))
    assert {file.name for file in tmp_path.iterdir()} == {"vocab.json", "merges.txt"}
    tokenizer = GPT2Tokenizer.from_pretrained(tmp_path)
    words = open_words(tmp_path, 500, [0])
    for text in TEXTS:
        assert words.decode_bytes(tokenizer.encode(text)) == text.encode()


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_words_of_a_sentencepiece_model(kind: str, tmp_path: Path) -> None:
    made = train(tmp_path, kind, "identity")
    folder = tmp_path / "alone"
    folder.mkdir()
    made.rename(folder / "tokenizer.model")
    pieces = Pieces(folder / "tokenizer.model", begins=False)
    words = open_words(folder, 500, [pieces.eos_token_id])
    for text in TEXTS:
        found = words.decode_bytes(pieces.encode(text, add_special_tokens=False))
        assert found.removeprefix(b" ") == text.encode()
    assert words.is_special_token(pieces.bos_token_id)


def test_what_has_no_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the engine has no tokenizer"):
        open_words(tmp_path / "none", 10, [2])
    with pytest.raises(UserError, match="no token that ends a text"):
        open_words(tmp_path, 10, [])
