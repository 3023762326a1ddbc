"""Tokenizers from folders: nothing is fetched, and no code that lies there is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerBase

from builders.errors import SourceError, UserError

_REMEDY = "name a folder with Hugging Face's tokenizer of the model: --tokenizer_dir"


def open_tokenizer(engine_dir: Path, tokenizer_dir: Path | None) -> PreTrainedTokenizerBase | None:
    """The one that was named, or the engine's own; None where it has none."""
    if tokenizer_dir is None:
        own = engine_dir / "tokenizer"
        return _opened(own) if own.is_dir() else None
    if not tokenizer_dir.is_dir():
        raise UserError(f"--tokenizer_dir={tokenizer_dir}: no such folder; {_REMEDY}")
    return _opened(tokenizer_dir)


def _opened(folder: Path) -> PreTrainedTokenizerBase:
    kind = _kind(folder)
    try:
        found = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise SourceError(f"{folder}: no tokenizer that can be read ({error}); {_REMEDY}") from error
    return cast(PreTrainedTokenizerBase, found)


_BY_FILES: Mapping[frozenset[str], type[GPT2Tokenizer]] = {
    frozenset({"vocab.json", "merges.txt"}): GPT2Tokenizer
}
"""What files without a configuration are for sure."""


def _kind(folder: Path) -> type[AutoTokenizer | GPT2Tokenizer]:
    """Transformers finds the class in the configuration; without one it would read pieces as another's."""
    names = frozenset(file.name for file in folder.iterdir())
    if names & {"tokenizer.json", "tokenizer_config.json", "config.json"}:
        return AutoTokenizer
    if names not in _BY_FILES:
        raise SourceError(
            f"{folder}: {', '.join(sorted(names)) or 'nothing'} alone does not say how to encode; {_REMEDY}"
        )
    return _BY_FILES[names]
