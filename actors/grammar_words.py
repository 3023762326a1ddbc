"""A model's tokens as bytes, which grammars are matched against: from its engine's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from llguidance import LLTokenizer, TokenizerWrapper
from tokenizers import AddedToken, Tokenizer

from builders.errors import UserError


def open_words(folder: Path | None, vocab_size: int, ends: Sequence[int]) -> LLTokenizer:
    """Takes about a second for 128,000 tokens. Raises UserError where no text can be held to a grammar."""
    if folder is None or not folder.is_dir():
        raise UserError("grammar: the engine has no tokenizer; build it with one")
    if not ends:
        raise UserError("grammar: the model has no token that ends a text; name it in generation_config.json")
    if {file.name for file in folder.iterdir()} == {"tokenizer.model"}:
        pieces = _Pieces(folder / "tokenizer.model", ends[0])
        number = max(vocab_size, len(pieces.tokens))
        return LLTokenizer(TokenizerWrapper(pieces), n_vocab=number, eos_token=[*ends])
    words = _backend(folder)
    number = max(vocab_size, max(ends) + 1, words.get_vocab_size())
    known = _Known(LLTokenizer(words.to_str(), n_vocab=number, eos_token=[*ends], slices=[]))
    return LLTokenizer(TokenizerWrapper(known), n_vocab=number, eos_token=[*ends])


def _backend(folder: Path) -> Tokenizer:
    """Without Transformers, which takes longer to import than this to do; it knows all other kinds."""
    if not (folder / "tokenizer.json").exists():
        from transformers import AutoTokenizer, GPT2Tokenizer

        kind = AutoTokenizer if (folder / "tokenizer_config.json").exists() else GPT2Tokenizer
        found = kind.from_pretrained(folder, local_files_only=True)
        if not found.is_fast:
            raise UserError(f"grammar: tokens of a {type(found).__name__} have no bytes; add tokenizer.json")
        words: Tokenizer = found.backend_tokenizer
    else:
        words = Tokenizer.from_file(str(folder / "tokenizer.json"))
        _add(words, folder / "tokenizer_config.json")
    words.no_padding()
    words.no_truncation()
    return words


def _add(words: Tokenizer, settings: Path) -> None:
    """Tokens that the tokenizer's own file may lack, as Transformers adds them."""
    added = json.loads(settings.read_text()).get("added_tokens_decoder", {}) if settings.exists() else {}
    for number in sorted(map(int, added)):
        one = added[str(number)]
        if words.id_to_token(number) is None and number == words.get_vocab_size():
            words.add_tokens([AddedToken(one["content"], special=bool(one.get("special")), normalized=False)])


class _Known:
    """Another tokenizer's tokens, and what is certain to come as it writes that.

    But an added token in it, such as `<tool_call>`, is not what llguidance takes for text: it would allow it,
    and then not have it. Such a text is written in others.
    """

    bos_token_id = None

    def __init__(self, words: LLTokenizer) -> None:
        numbers = range(words.vocab_size)
        self.eos_token_id, self._words = words.eos_token, words
        self.tokens = [words.decode_bytes([number]) for number in numbers]
        self.special_token_ids = [number for number in numbers if words.is_special_token(number)]
        self._special = frozenset(self.special_token_ids)

    def __call__(self, text: str | bytes) -> list[int]:
        plain = text if isinstance(text, str) else text.decode()
        found = self._words.tokenize_str(plain)
        return self._words.greedy_tokenize(plain) if self._special.intersection(found) else found


class _Pieces:
    """A bare SentencePiece model, as llguidance expects a tokenizer."""

    bos_token_id = None

    def __init__(self, file: Path, end: int) -> None:
        import sentencepiece

        model = self._model = sentencepiece.SentencePieceProcessor(model_file=str(file))
        numbers = range(model.vocab_size())
        names = [str(model.id_to_piece(number)) for number in numbers]
        self.eos_token_id = end
        self.tokens = [
            bytes.fromhex(name[3:5]) if model.is_byte(number) else name.replace("▁", " ").encode()
            for number, name in enumerate(names)
        ]
        self.special_token_ids = [one for one in numbers if model.is_control(one) or model.is_unknown(one)]

    def __call__(self, text: str) -> list[int]:
        return list(self._model.encode(text))
