"""How many characters one token may stand for, where a tokenizer's parts show that it leaves none out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerBase

_CUTS = frozenset({"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split"})
"""Ways to part a text, which leave out nothing unless they say `Removed`."""
_MOST_COMPOSED = 4
"""Characters of which NFC makes one."""


def longest_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """In characters of a text as it comes; None where a token may stand for any number of them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer) or not _has_every_byte(backend):
        return None
    if any(token.lstrip or token.rstrip for token in backend.get_added_tokens_decoder().values()):
        return None
    if not all(one["type"] in _CUTS and one.get("behavior") != "Removed" for one in _cuts(backend)):
        return None
    changes = [*_parts(backend.normalizer)]
    if not all(map(_keeps_all, changes)):
        return None
    composed = _MOST_COMPOSED if any(one["type"] == "NFC" for one in changes) else 1
    return composed * max(map(len, backend.get_vocab()), default=1)


def _has_every_byte(backend: Tokenizer) -> bool:
    """Nothing is unknown: one unknown token may stand for a whole word."""
    if not isinstance(backend.model, models.BPE):
        return False
    if backend.model.byte_fallback:
        names: Any = (f"<0x{byte:02X}>" for byte in range(256))
    elif any(one["type"] == "ByteLevel" for one in _cuts(backend)):
        names = ByteLevel.alphabet()
    else:
        return False
    return all(backend.model.token_to_id(name) is not None for name in names)


def _cuts(backend: Tokenizer) -> Iterator[dict[str, Any]]:
    return _parts(backend.pre_tokenizer)


def _parts(one: Any) -> Iterator[dict[str, Any]]:
    """Of a sequence, or itself."""
    if one is None:
        return
    state = json.loads(one.__getstate__())
    yield from state.get("normalizers") or state.get("pretokenizers") or [state]


def _keeps_all(change: dict[str, Any]) -> bool:
    """A character stays one at least, up to composition."""
    is_space = change.get("pattern") == {"String": " "} and change.get("content") == "▁"
    return change["type"] in ("NFC", "Prepend") or (change["type"] == "Replace" and is_space)
