"""Tokenizers from folders, and folders that would be read as another's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builders.errors import SourceError, UserError
from cluster.tokenizer import open_tokenizer
from tests.actors.test_detokenizer import CORPUS, byte_level


def saved(folder: Path) -> Path:
    byte_level().save_pretrained(folder)
    return folder


def test_the_engines_own(tmp_path: Path) -> None:
    saved(tmp_path / "tokenizer")
    tokenizer = open_tokenizer(tmp_path, None)
    assert tokenizer and tokenizer.eos_token == "</s>"
    assert [tokenizer.encode(text) for text in CORPUS] == [byte_level().encode(text) for text in CORPUS]


def test_an_engine_without(tmp_path: Path) -> None:
    assert open_tokenizer(tmp_path, None) is None


def test_one_that_is_named_counts_more(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    assert open_tokenizer(tmp_path, saved(tmp_path / "other")) is not None


def test_words_and_merges_alone(tmp_path: Path) -> None:
    byte_level().backend_tokenizer.model.save(str(tmp_path))
    assert {file.name for file in tmp_path.iterdir()} == {"vocab.json", "merges.txt"}
    tokenizer = open_tokenizer(tmp_path, tmp_path)
    assert tokenizer and tokenizer.encode(CORPUS[2]) == byte_level().encode(CORPUS[2])


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as raised:
        open_tokenizer(folder, folder)
    assert "--tokenizer_dir" in str(raised.value)
    return str(raised.value)


def test_files_that_nobody_describes_are_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / "some.tiktoken").write_bytes(b"anything")
    (tmp_path / "tokenizer.model").write_bytes(b"anything")
    assert "some.tiktoken, tokenizer.model alone does not say how to encode" in refusal(tmp_path)
    for number in range(30):
        (tmp_path / f"a{number:02}").touch()
    assert "a00, a01, a02, a03, a04 and 27 more alone does not say how to encode" in refusal(tmp_path)


def test_folders_without_a_tokenizer(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "nowhere")
    assert "nothing alone does not say" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "no tokenizer that can be read" in refusal(tmp_path)


def test_a_damaged_one(tmp_path: Path) -> None:
    (saved(tmp_path) / "tokenizer.json").write_text("{")
    with pytest.raises(SourceError, match="no tokenizer that can be read"):
        open_tokenizer(tmp_path, tmp_path)


def test_code_is_not_run(tmp_path: Path) -> None:
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    assert "custom code" in refusal(tmp_path)
    assert not (tmp_path / "ran").exists()
