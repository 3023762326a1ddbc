"""Texts in pieces, with tokenizers made on the spot: byte-level, and with byte tokens as SentencePiece's."""

from __future__ import annotations

import codecs
import functools
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from actors.detokenizer import Detokenizer, Words
from tests.strategies import quick

CORPUS = [
    "the quick brown fox jumps over the lazy dog, and 3 more: don't they?",
    "Übermäßig viele Grüße aus Köln – naïve café",
    "日本語のテキストと中文文本",
    "emoji 😀😀 👩‍👩‍👧 and\n\n  spaces\tand tabs",
] * 3
SPECIAL = [
    AddedToken("<s>", special=True),
    AddedToken("</s>", special=True),
    AddedToken("<|turn|>", special=True),
]


@functools.cache
def byte_level(prefix_space: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return finished(tokenizer)


@functools.cache
def byte_tokens() -> PreTrainedTokenizerFast:
    """As LLaMA's: spaces are part of words, unknown characters are bytes, and the first space is dropped."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=list("▁abcdefghijklmnopqrstuvwxyzé日本"),
        limit_alphabet=60,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    # The trainer makes its special tokens added ones, which are no bytes to the model.
    model = tokenizer.model
    plain = Tokenizer(model)
    plain.normalizer, plain.decoder = tokenizer.normalizer, tokenizer.decoder
    return finished(plain)


@functools.cache
def word_pieces() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return finished(tokenizer)


@functools.cache
def metaspace() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return finished(tokenizer)


def finished(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_tokens([AddedToken("<plain>")])
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


TOKENIZERS = [byte_level, functools.partial(byte_level, True), byte_tokens, word_pieces, metaspace]
tokenizers = st.sampled_from(TOKENIZERS)


def pieces_of(tokenizer: PreTrainedTokenizerFast, ids: list[int], *, skip: bool = True) -> list[str]:
    detokenizer = Detokenizer(Words(tokenizer, skip_special_tokens=skip))
    return [*map(detokenizer.add, ids), detokenizer.flush()]


def whole(tokenizer: PreTrainedTokenizerFast, ids: list[int], *, skip: bool = True) -> str:
    return tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)  # type: ignore[return-value]


words = st.text() | st.text(alphabet=" \n\tabeé日😀👩\u200d�▁<0x>") | st.sampled_from(CORPUS)
texts = st.lists(words, max_size=6).map("".join)


@quick
@given(tokenizers, texts, st.booleans())
def test_pieces_of_a_text_are_the_text(tokenizer_of: functools.partial, text: str, skip: bool) -> None:  # type: ignore[type-arg]
    tokenizer = tokenizer_of()
    ids = tokenizer.encode(text)
    assert "".join(pieces_of(tokenizer, ids, skip=skip)) == whole(tokenizer, ids, skip=skip)


@quick
@given(tokenizers, st.data(), st.booleans())
def test_pieces_of_any_tokens_are_their_text(
    tokenizer_of: functools.partial,  # type: ignore[type-arg]
    data: st.DataObject,
    skip: bool,
) -> None:
    """Special tokens, tokens without a name and bytes that are no characters among them."""
    tokenizer = tokenizer_of()
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) + 3), max_size=60))
    expected = whole(tokenizer, with_good_bytes(tokenizer, ids, skip=skip), skip=skip)
    assert "".join(pieces_of(tokenizer, ids, skip=skip)) == expected


def with_good_bytes(tokenizer: PreTrainedTokenizerFast, ids: list[int], *, skip: bool) -> list[int]:
    """Every byte token that is part of no character becomes the three of the replacement character."""
    names = tokenizer.convert_ids_to_tokens(ids)
    skipped = (
        set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids("<|turn|>")} if skip else set()
    )
    texts = [(token, name) for token, name in zip(ids, names, strict=True) if name and token not in skipped]
    good: list[str] = []
    for is_byte, group in itertools.groupby((name for _, name in texts), key=lambda name: name[:3] == "<0x"):
        if is_byte:
            run = bytes.fromhex("".join(name[3:5] for name in group)).decode(errors="one_by_one").encode()
            good += [f"<0x{byte:02X}>" for byte in run]
        else:
            good += group
    return tokenizer.convert_tokens_to_ids(good)  # type: ignore[return-value]


codecs.register_error("one_by_one", lambda error: ("�" * (error.end - error.start), error.end))  # type: ignore[attr-defined]


@quick
@given(st.lists(st.integers(0, 255), max_size=80))
def test_any_bytes(run: list[int]) -> None:
    """One token a byte: nothing but halves."""
    tokenizer = byte_level()
    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = tokenizer.convert_tokens_to_ids([names[byte] for byte in run])
    assert "".join(pieces_of(tokenizer, ids)) == whole(tokenizer, ids)  # type: ignore[arg-type]


@quick
@given(st.lists(st.sampled_from(["é", "日", "😀", "\n", "a", "b "]), max_size=40))
def test_characters_of_byte_tokens_come_whole_and_at_once(characters: list[str]) -> None:
    """A newline that is a byte token must not wait for the next token: it may be what ends the text."""
    tokenizer = byte_tokens()
    detokenizer = Detokenizer(Words(tokenizer))
    for character in characters:
        ids = tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in character.encode()])
        assert "".join(map(detokenizer.add, ids)) == character  # type: ignore[arg-type]
    assert detokenizer.flush() == ""


def test_wrong_bytes_are_shown_and_forgotten() -> None:
    tokenizer = byte_tokens()
    euro = ["<0xE2>", "<0x82>", "<0xAC>"]
    ids = tokenizer.convert_tokens_to_ids(
        ["<0xFF>", "▁", "a", *["<0xFF>"] * 50, *euro * 12, "<0xF0>", "▁", "a"]
    )
    assert "".join(pieces_of(tokenizer, ids)) == "� a" + "�" * 50 + "€" * 12 + "� a"  # type: ignore[arg-type]


def test_a_replacement_character_that_is_meant_keeps_its_place() -> None:
    tokenizer = byte_tokens()
    tokenizer.add_tokens(["�"])
    try:
        ids = tokenizer.convert_tokens_to_ids(["a", "�", "<0xE2>", "<0x82>", "<0xAC>", "�", "a"])
        pieces = pieces_of(tokenizer, ids)  # type: ignore[arg-type]
        assert "".join(pieces) == whole(tokenizer, ids) == "a �€ �a"  # type: ignore[arg-type]
    finally:
        byte_tokens.cache_clear()


class Loud(PreTrainedTokenizerFast):
    """A tokenizer with a way of its own to decode."""

    def _decode(self, *args: object, **options: object) -> str:
        return super()._decode(*args, **options).upper()


def test_a_tokenizers_own_way_is_respected() -> None:
    tokenizer = Loud(tokenizer_object=byte_level().backend_tokenizer)
    assert "".join(pieces_of(tokenizer, tokenizer.encode("the lazy dog 🦀"))) == "THE LAZY DOG 🦀"


def test_words_that_look_like_byte_tokens_are_words() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens(["<0xE2>"])
    try:
        ids = tokenizer.encode("a<0xE2>b")
        assert pieces_of(tokenizer, ids) == ["a", "<0xE2>", "b", ""]
    finally:
        byte_level.cache_clear()


def test_no_piece_has_half_a_character() -> None:
    """The emoji's four bytes are four tokens; the pieces before the last are empty."""
    tokenizer = byte_level()
    ids = tokenizer.encode("a🦀b")
    assert len(ids) > 4
    assert [piece for piece in pieces_of(tokenizer, ids) if piece] == ["a", "🦀", "b"]


@pytest.mark.parametrize("tokenizer_of", TOKENIZERS)
@pytest.mark.parametrize("text", ["the quick brown fox ", "😀", "日本", "\n", "🦀"])
def test_work_grows_with_length_alone(tokenizer_of: functools.partial, text: str) -> None:  # type: ignore[type-arg]
    """No decoding is of more than a few tokens, however long the text is."""
    tokenizer = tokenizer_of()
    decoded: list[int] = []

    class Counted(Words):
        def text(self, tokens):  # type: ignore[no-untyped-def]
            decoded.append(len(tokens))
            return super().text(tokens)

    ids = tokenizer.encode(text * 300)
    detokenizer = Detokenizer(Counted(tokenizer))
    assert "".join([*map(detokenizer.add, ids), detokenizer.flush()]) == whole(tokenizer, ids)
    assert max(decoded, default=0) <= 20
    assert len(decoded) <= 1.25 * len(ids) + 2
