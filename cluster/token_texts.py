"""What a single token stands for: bytes, which need not be whole characters."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from actors.detokenizer import Words

_SPACE = "▁"
"""What SentencePiece and those after it put for a space."""


class TokenTexts:
    """Of a tokenizer's tokens, remembered."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._words = Words(tokenizer, skip_special_tokens=False)
        self._added = frozenset(tokenizer.added_tokens_decoder)
        self._alphabet = _byte_alphabet() if _is_byte_level(tokenizer) else None
        self._known: dict[int, bytes] = {}

    def spelling(self, token: int) -> bytes:
        """Nothing for a token of the model that the tokenizer does not have."""
        if token not in self._known:
            self._known[token] = self._bytes(token)
        return self._known[token]

    def text(self, token: int) -> str:
        """With signs of replacement where it is no whole characters."""
        return self.spelling(token).decode(errors="replace")

    def label(self, token: int) -> str:
        """As `text`; where that says too little, the bytes as OpenAI writes them."""
        found = self.spelling(token)
        try:
            return found.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)

    def _bytes(self, token: int) -> bytes:
        name = self._words.name(token) or ""
        byte = self._words.byte(token)
        if byte is not None:
            return byte
        if token in self._added:
            return name.encode()
        if self._alphabet and all(character in self._alphabet for character in name):
            return bytes(self._alphabet[character] for character in name)
        return name.replace(_SPACE, " ").encode()


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Its decoder reads the alphabet below."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    return decoder is not None and decoder.decode(["Ġ"]) == " "


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's: printable bytes are themselves, the others follow 255 in their order."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + place): byte for place, byte in enumerate(others)}
