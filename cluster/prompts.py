"""What to generate from: texts of the command line or of a file, or token ids in a .csv or .npy file."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from builders.errors import UserError
from cluster.run_options import RunOptions

Row = tuple[int, ...]

SURROGATE = re.compile("[\ud800-\udfff]")
"""What is no text: it cannot be written, and no tokenizer takes it."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Prompts as they were given, before there is a tokenizer."""

    name: str
    """How errors call it."""
    texts: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    """Token ids, in place of texts."""
    padded: bool = False
    """Rows are filled up at their ends."""


def read_inputs(options: RunOptions) -> Inputs:
    """What the options name, as far as that needs no tokenizer."""
    file = options.input_file
    if file is None:
        remedy = "give it in a file, or another text"
        texts = tuple(readable("--input_text", text, remedy) for text in options.input_text)
        return Inputs(name="--input_text", texts=texts)
    if "input_text" in options.given:
        raise UserError(f"--input_file={file}: there is --input_text too; give one of them")
    inputs = _READERS.get(file.suffix.lower(), _lines)(file)
    if not inputs.texts and not inputs.rows:
        raise UserError(f"--input_file={file}: holds no prompts; give one a line")
    return inputs


def prompts_of(
    inputs: Inputs, options: RunOptions, tokenizer: PreTrainedTokenizerBase | None, pad: int | None
) -> list[Row]:
    """Token ids of every prompt, cut where that is asked for: the last ones stay."""
    most = options.max_input_length
    if inputs.texts:
        return _encoded(inputs, options, tokenizer)
    rows = [_without_end(row, pad) if inputs.padded else row for row in inputs.rows]
    return [row[-most:] if most else row for row in rows]


def check_prompts(name: str, prompts: Sequence[Row], vocab_size: int) -> None:
    """Refuse what is no prompt of the model."""
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"{name}: prompt {number} has no tokens; give it one, or leave it out")
        foreign = next((token for token in prompt if not 0 <= token < vocab_size), None)
        if foreign is not None:
            raise UserError(
                f"{name}: prompt {number} has token {foreign}, the model's are 0 to {vocab_size - 1}; "
                "use its own tokenizer, and --pad_id for what fills up rows"
            )


def _encoded(inputs: Inputs, options: RunOptions, tokenizer: PreTrainedTokenizerBase | None) -> list[Row]:
    if tokenizer is None:
        raise UserError(
            f"{inputs.name}: {options.engine_dir} has no tokenizer; name one with --tokenizer_dir, or give "
            "token ids in a .csv or .npy file as --input_file"
        )
    tokenizer.truncation_side = "left"
    encoded = tokenizer(
        list(inputs.texts),
        add_special_tokens=not options.no_add_special_tokens,
        truncation=options.max_input_length is not None,
        max_length=options.max_input_length,
        verbose=False,
    )
    return [tuple(ids) for ids in encoded["input_ids"]]


def readable(option: str, text: str, remedy: str = "give another text") -> str:
    """A command line may have bytes that are no text."""
    if SURROGATE.search(text):
        raise UserError(f"{option}={text!a}: not UTF-8; {remedy}")
    return text


def _without_end(row: Row, pad: int | None) -> Row:
    end = len(row)
    while end and row[end - 1] == pad:
        end -= 1
    return row[:end]


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise _unreadable(file, error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise _unreadable(file, f"not UTF-8 at byte {error.start}") from error


def _unreadable(file: Path, why: str) -> UserError:
    return UserError(
        f"--input_file={file}: cannot be read ({why}); give lines of text, or token ids in .csv or .npy"
    )


def _lines(file: Path) -> Inputs:
    """A prompt each, up to the last that is not empty."""
    lines = _text_of(file).rstrip("\n").split("\n")
    for number, line in enumerate(lines if lines != [""] else [], 1):
        if not line:
            raise UserError(f"--input_file={file}: line {number} is empty; every line is a prompt")
    return Inputs(name=str(file), texts=tuple(line for line in lines if line))


def _csv(file: Path) -> Inputs:
    lines = csv.reader(_text_of(file).rstrip("\n").split("\n"))
    rows = tuple(_ids(file, number, row) for number, row in enumerate(lines, 1))
    return Inputs(name=str(file), rows=rows if rows != ((),) else ())


_ID = re.compile(r"\s*[0-9]{1,18}\s*")


def _ids(file: Path, line: int, row: Sequence[str]) -> Row:
    for word in row:
        if _ID.fullmatch(word) is None:
            raise UserError(
                f"--input_file={file}: line {line} has '{word}', which is no token id; write 17,42,7"
            )
    return tuple(int(word) for word in row)


def _npy(file: Path) -> Inputs:
    try:
        found = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(file, str(error)) from error
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "iu" or found.ndim not in (1, 2):
        what = f"{found.dtype}{list(found.shape)}" if isinstance(found, np.ndarray) else "several arrays"
        raise _unreadable(file, f"{what} is no array of integers with one or two dimensions")
    rows = tuple(tuple(row) for row in np.atleast_2d(found).tolist())
    return Inputs(name=str(file), rows=rows if found.size else (), padded=found.ndim == 2)


_READERS: Mapping[str, Callable[[Path], Inputs]] = {".csv": _csv, ".npy": _npy}
"""Whatever else it is called, a file has lines of text."""
