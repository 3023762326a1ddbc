"""Which tokens end texts and fill up arrays."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from builders.errors import UserError
from cluster.run_options import RunOptions
from cluster.token_ends import NOTHING, Ends, ends_of
from tests.actors.test_detokenizer import byte_level

WORDS_END = byte_level().eos_token_id


def found(
    folder: Path, tokenizer: PreTrainedTokenizerFast | None = None, own: Any = None, **changes: Any
) -> Ends:
    if own is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": own}))
    return ends_of(RunOptions(engine_dir=folder, max_output_len=1, **changes), tokenizer, vocab_size=500)


def padding() -> PreTrainedTokenizerFast:
    tokenizer = deepcopy(byte_level())
    tokenizer.pad_token = "<s>"
    return tokenizer


def test_the_engines_own_stay(tmp_path: Path) -> None:
    assert found(tmp_path, own=[7, 8]) == Ends(stops=None, fill=7, pad=7)
    assert found(tmp_path, own=7) == Ends(stops=None, fill=7, pad=7)


def test_arrays_are_filled_with_what_the_tokenizer_says(tmp_path: Path) -> None:
    assert found(tmp_path, byte_level(), own=[7]) == Ends(stops=None, fill=WORDS_END, pad=WORDS_END)
    assert found(tmp_path, padding(), own=[7]).pad == padding().bos_token_id


def test_a_tokenizer_that_was_named_ends_texts_of_an_engine_without_ends(tmp_path: Path) -> None:
    assert found(tmp_path, byte_level()).stops == (WORDS_END,)


def test_options_count_most(tmp_path: Path) -> None:
    assert found(tmp_path, byte_level(), own=[7], end_id=9) == Ends(stops=(9,), fill=9, pad=9)
    assert found(tmp_path, own=[7], end_id=0, pad_id=-1) == Ends(stops=(0,), fill=0, pad=-1)
    assert found(tmp_path, own=[7], end_id=-1) == Ends(stops=(), fill=7, pad=7)


def test_nothing_is_known(tmp_path: Path) -> None:
    assert found(tmp_path) == Ends(stops=(), fill=NOTHING, pad=None)


def test_an_end_that_the_model_has_not(tmp_path: Path) -> None:
    assert found(tmp_path, end_id=499).stops == (499,)
    with pytest.raises(UserError, match="--end_id=500: the model's tokens are 0 to 499"):
        found(tmp_path, end_id=500)
