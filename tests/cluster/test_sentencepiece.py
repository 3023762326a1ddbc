"""Bare SentencePiece models, against SentencePiece itself."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import sentencepiece

from actors.detokenizer import Detokenizer, Words
from cluster.pieces import Pieces
from tests.actors.test_detokenizer import CORPUS

TEXTS = ["the quick brown fox", " two  spaces ", "a\nb\tc", "naïve ½ ﬁ", "x<extra>y <extra>", "日本語 😀", ""]
SIZES = {"bpe": 450, "unigram": 350}
NORMALIZED = {"nmt_nfkc": True, "identity": False}
"""Whether spaces that are too many are removed."""


def train(folder: Path, kind: str, rule: str, **settings: object) -> Path:
    chance, words = random.Random(0), " ".join(CORPUS).split()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(chance.choices(words, k=8)) for _ in range(300)]),
        model_prefix=str(folder / "tokenizer"),
        model_type=kind,
        vocab_size=SIZES[kind],
        normalization_rule_name=rule,
        remove_extra_whitespaces=NORMALIZED[rule],
        byte_fallback=True,
        user_defined_symbols=["<extra>"],
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    return folder / "tokenizer.model"


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("rule", NORMALIZED)
def test_as_sentencepiece_does(kind: str, rule: str, tmp_path: Path) -> None:
    model = train(tmp_path, kind, rule)
    known, ours = sentencepiece.SentencePieceProcessor(model_file=str(model)), Pieces(model, begins=False)
    for text in TEXTS:
        tokens = known.encode(text)
        assert ours.encode(text) == tokens
        assert ours.decode(tokens) == known.decode(tokens)
    assert (ours.eos_token_id, ours.bos_token_id, ours.pad_token_id) == (known.eos_id(), known.bos_id(), None)


def test_texts_may_begin_with_a_token(tmp_path: Path) -> None:
    model = train(tmp_path, "bpe", "identity", pad_id=3)
    plain, begun = Pieces(model, begins=False), Pieces(model, begins=True)
    tokens = plain.encode(TEXTS[0])
    assert begun.encode(TEXTS[0]) == [begun.bos_token_id, *tokens]
    assert begun.encode(TEXTS[0], add_special_tokens=False) == tokens
    assert begun.pad_token_id == 3
    begun.truncation_side = "left"
    cut = begun(TEXTS[:1], truncation=True, max_length=3, verbose=False)["input_ids"]
    assert cut == [[begun.bos_token_id, *tokens[-2:]]]


def test_a_model_without_special_tokens(tmp_path: Path) -> None:
    ours = Pieces(train(tmp_path, "bpe", "identity", bos_id=-1, eos_id=-1), begins=True)
    assert ours.bos_token_id is ours.eos_token_id is None
    assert ours.encode("the") == ours.encode("the", add_special_tokens=False) != []


@pytest.mark.parametrize("rule", NORMALIZED)
def test_token_by_token(rule: str, tmp_path: Path) -> None:
    """Rows of the model that have no piece have no text."""
    ours = Pieces(train(tmp_path, "bpe", rule), begins=False)
    for text in ("the quick brown fox", "naïve 日本語 😀 fox"):
        tokens = ours.encode(text)
        pieces = Detokenizer(Words(ours))
        streamed = "".join(pieces.add(token) for token in [*tokens, len(ours) + 5]) + pieces.flush()
        assert streamed == ours.decode([*tokens, len(ours) + 5]) == text
