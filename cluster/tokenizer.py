"""Tokenizers from folders: nothing is fetched, and no code that lies there is run."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerBase

from builders.engine_manifest import read_engine
from builders.errors import SourceError, UserError, some_of
from cluster.pieces import Pieces

_REMEDY = "name a folder with Hugging Face's tokenizer of the model: --tokenizer_dir"
_DESCRIBED = {"tokenizer.json", "tokenizer_config.json", "config.json"}
"""With one of these Transformers knows how to encode; without, it would guess, and be wrong."""
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError)


def open_tokenizer(engine_dir: Path, tokenizer_dir: Path | None) -> PreTrainedTokenizerBase | None:
    """The one that was named, or the engine's own; None where it has none."""
    folder = engine_dir / "tokenizer" if tokenizer_dir is None else tokenizer_dir
    if not folder.is_dir():
        if tokenizer_dir is None:
            return None
        raise UserError(f"--tokenizer_dir={tokenizer_dir}: no such folder; {_REMEDY}")
    try:
        return _opened(folder, engine_dir)
    except _DAMAGED as error:
        raise SourceError(f"{folder}: no tokenizer that can be read ({error}); {_REMEDY}") from error


def _opened(folder: Path, engine_dir: Path) -> PreTrainedTokenizerBase:
    names = {file.name for file in folder.iterdir()}
    if names & _DESCRIBED:
        found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    elif names == {"vocab.json", "merges.txt"}:
        found = GPT2Tokenizer.from_pretrained(folder, local_files_only=True)
    elif names == {"tokenizer.model"}:
        begins = read_engine(engine_dir).checkpoint.spec.family == "llama"
        found = Pieces(folder / "tokenizer.model", begins=begins)
    else:
        raise SourceError(
            f"{folder}: {some_of(names) or 'nothing'} alone does not say how to encode; {_REMEDY}"
        )
    return cast(PreTrainedTokenizerBase, found)
