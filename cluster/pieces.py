"""A SentencePiece model alone, as NeMo's and Meta's folders have it: Transformers would guess at its use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.tokenization_utils_sentencepiece import SentencePieceBackend


class Pieces(SentencePieceBackend):
    """Encodes and decodes as SentencePiece itself does; LLaMA's texts begin with a token, NeMo's do not."""

    def __init__(self, model: Path, *, begins: bool) -> None:
        import sentencepiece

        known = sentencepiece.SentencePieceProcessor(model_file=str(model))
        ids = {"bos_token": known.bos_id(), "eos_token": known.eos_id(), "pad_token": known.pad_id()}
        named = {name: known.id_to_piece(number) for name, number in ids.items() if number >= 0}
        self._begins = begins
        super().__init__(vocab_file=str(model), unk_token=known.id_to_piece(known.unk_id()), **named)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        begin = [self.bos_token_id] if self._begins and self.bos_token_id is not None else []
        return [*begin, *token_ids_0, *(token_ids_1 or [])]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return str(self.sp_model.decode([token for token in tokens if token]))

    def _convert_id_to_token(self, index: int) -> Any:
        """None for a row of the model that has no piece."""
        return self.sp_model.id_to_piece(index) if index < self.vocab_size else None
