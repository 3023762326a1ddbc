"""Prompts from the command line and from files, and every file that is none."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from builders.errors import UserError
from cluster.prompts import check_prompts, prompts_of, read_inputs
from cluster.run_options import SENTENCE, RunOptions
from tests.actors.test_detokenizer import byte_level


def options(**changes: Any) -> RunOptions:
    return RunOptions(**{"engine_dir": Path("engine"), "max_output_len": 4, **changes})


def beginning() -> PreTrainedTokenizerFast:
    """A tokenizer that begins every text."""
    tokenizer = deepcopy(byte_level())
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


def rows_of(file: Path, pad: int | None = None, **changes: Any) -> list[tuple[int, ...]]:
    given = options(input_file=file, **changes)
    return prompts_of(read_inputs(given), given, None, pad)


def text_file(folder: Path, content: str | bytes, name: str = "prompts.txt") -> Path:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


def array_file(folder: Path, array: Any) -> Path:
    np.save(folder / "prompts.npy", array)
    return folder / "prompts.npy"


def test_the_old_scripts_sentence_is_the_default() -> None:
    assert read_inputs(options()).texts == (SENTENCE,)


@pytest.mark.parametrize(
    "content",
    ["one\ntwo words\n", "one\ntwo words", "one\r\ntwo words\r\n\r\n", b"\xef\xbb\xbfone\ntwo words\n\n"],
    ids=["lines", "no last end", "windows", "marked"],
)
def test_a_line_is_a_prompt(content: str | bytes, tmp_path: Path) -> None:
    assert read_inputs(options(input_file=text_file(tmp_path, content))).texts == ("one", "two words")


def test_only_ends_of_lines_end_lines(tmp_path: Path) -> None:
    line = "one\x0b\x0c\x1c\x85\u2028still the same "
    assert read_inputs(options(input_file=text_file(tmp_path, line + "\nb", "prompts"))).texts == (line, "b")


def test_texts_become_the_tokens_that_the_tokenizer_makes() -> None:
    tokenizer, given = beginning(), options(input_text=["hello world", "日本語"])
    expected = [tuple(tokenizer.encode(text)) for text in given.input_text]
    assert prompts_of(read_inputs(given), given, tokenizer, None) == expected
    assert all(prompt[0] == tokenizer.bos_token_id for prompt in expected)
    bare = options(input_text=["hello world"], no_add_special_tokens=True)
    assert prompts_of(read_inputs(bare), bare, tokenizer, None) == [expected[0][1:]]


def test_long_texts_keep_their_beginning_token_and_their_last_ones() -> None:
    tokenizer, given = beginning(), options(input_text=["hello world", "a"], max_input_length=4)
    whole, short = (tuple(tokenizer.encode(text)) for text in given.input_text)
    assert prompts_of(read_inputs(given), given, tokenizer, None) == [(whole[0], *whole[-3:]), short]


def test_tokens_from_csv(tmp_path: Path) -> None:
    file = text_file(tmp_path, "1,2,3\n 4\n5, 6\n", "prompts.csv")
    assert rows_of(file) == [(1, 2, 3), (4,), (5, 6)]
    assert rows_of(file, pad=3, max_input_length=2) == [(2, 3), (4,), (5, 6)]


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16, ">i4"])
def test_tokens_from_npy(dtype: Any, tmp_path: Path) -> None:
    file = array_file(tmp_path, np.array([[1, 9, 2, 9, 9], [9, 4, 5, 6, 7]], dtype))
    assert rows_of(file, pad=9) == [(1, 9, 2), (9, 4, 5, 6, 7)]
    assert rows_of(file, pad=None) == [(1, 9, 2, 9, 9), (9, 4, 5, 6, 7)]
    assert rows_of(file, pad=9, max_input_length=2) == [(9, 2), (6, 7)]
    assert all(type(token) is int for row in rows_of(file) for token in row)


def test_one_row_of_npy_is_a_prompt_without_padding(tmp_path: Path) -> None:
    assert rows_of(array_file(tmp_path, np.array([1, 2, 9])), pad=9) == [(1, 2, 9)]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda at: at / "nowhere.txt", "No such file"),
        (lambda at: at, "Is a directory"),
        (lambda at: text_file(at, b"caf\xe9"), "not UTF-8 at byte 3"),
        (lambda at: text_file(at, ""), "holds no prompts"),
        (lambda at: text_file(at, "\n\n"), "holds no prompts"),
        (lambda at: text_file(at, "a\n\nb\n"), "line 2 is empty"),
        (lambda at: text_file(at, "", "a.csv"), "holds no prompts"),
        (lambda at: text_file(at, "1,2\n3,b\n", "a.csv"), "line 2 has 'b', which is no token id"),
        (lambda at: text_file(at, "1,-2\n", "a.csv"), "line 1 has '-2'"),
        (lambda at: text_file(at, "1_0\n", "a.csv"), "line 1 has '1_0'"),
        (lambda at: text_file(at, "1,\n", "a.CSV"), "line 1 has ''"),
        (lambda at: at / "nowhere.npy", "No such file"),
        (lambda at: text_file(at, "1,2", "a.npy"), "cannot be read"),
        (lambda at: text_file(at, "", "a.npy"), "cannot be read"),
        (lambda at: array_file(at, np.array([1.0])), "float64[1] is no array of integers"),
        (lambda at: array_file(at, np.zeros((1, 1, 1), int)), "int64[1, 1, 1] is no array"),
        (lambda at: array_file(at, np.zeros((0, 4), int)), "holds no prompts"),
        (lambda at: array_file(at, np.zeros(0, int)), "holds no prompts"),
        (lambda at: array_file(at, np.array(True)), "is no array of integers"),
    ],
)
def test_files_that_are_none(make: Callable[[Path], Path], words: str, tmp_path: Path) -> None:
    file = make(tmp_path)
    with pytest.raises(UserError) as raised:
        read_inputs(options(input_file=file))
    assert words in str(raised.value) and str(raised.value).startswith(f"--input_file={file}: ")


def test_arrays_that_would_run_code_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "prompts.npy"
    np.save(file, np.array([[1, "x"]], object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read"):
        read_inputs(options(input_file=file))


def test_several_arrays_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "prompts.npz"
    np.savez(file, a=np.array([1]))
    with pytest.raises(UserError, match="several arrays is no array of integers"):
        read_inputs(options(input_file=file.rename(tmp_path / "prompts.npy")))


def test_texts_and_a_file_are_refused(tmp_path: Path) -> None:
    given = frozenset({"input_text", "input_file"})
    with pytest.raises(UserError, match="give one of them"):
        read_inputs(options(input_text=["a"], input_file=text_file(tmp_path, "b"), given=given))


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(UserError, match=r"--input_text='caf\\udce9': not UTF-8"):
        read_inputs(options(input_text=[b"caf\xe9".decode("utf-8", "surrogateescape")]))


def test_texts_without_a_tokenizer_are_refused() -> None:
    with pytest.raises(UserError, match="--input_text: engine has no tokenizer; name one with --tok"):
        prompts_of(read_inputs(options()), options(), None, None)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([(1,), ()], "prompt 1 has no tokens"),
        ([(1,), (0, 10)], "prompt 1 has token 10, the model's are 0 to 9; .* --pad_id"),
        ([(-1,)], "prompt 0 has token -1"),
    ],
)
def test_what_is_no_prompt_of_the_model(prompts: list[tuple[int, ...]], words: str) -> None:
    with pytest.raises(UserError, match=f"^prompts.npy: {words}"):
        check_prompts("prompts.npy", prompts, vocab_size=10)


def test_every_token_of_the_model_is_allowed() -> None:
    check_prompts("prompts.npy", [tuple(range(10))], vocab_size=10)
