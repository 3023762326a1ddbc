"""The files that `rankforge run` writes: arrays of tokens, logits and log-probabilities, and JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from builders.errors import UserError
from cluster.generation import Output, Result
from cluster.output import check_file, new_file, real_place
from cluster.run_options import RunOptions


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Everything there is to write."""

    results: Sequence[Result]
    prompt_texts: Sequence[str | None]
    """What the prompts say, where there is a tokenizer."""
    fill: int
    """What follows a text's tokens in arrays."""
    seconds: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """One document."""
        texts = zip(self.prompt_texts, self.results, strict=True)
        return {"results": [_result(*both) for both in texts], "seconds": dict(self.seconds)}

    @property
    def lengths(self) -> tuple[int, int, int]:
        """[prompts, texts, tokens] of an array of all tokens."""
        outputs = [len(result.outputs) for result in self.results]
        tokens = [len(output.tokens) for result in self.results for output in result.outputs]
        return len(outputs), max(outputs), max(tokens)

    def filled(self, array: NDArray[Any], values: Callable[[Output], Any]) -> None:
        """Put every text's values at its place in an array [prompts, texts, tokens, ...]."""
        for number, result in enumerate(self.results):
            for index, output in enumerate(result.outputs):
                array[number, index, : len(output.tokens)] = values(output)


def _result(prompt_text: str | None, result: Result) -> dict[str, Any]:
    usage = result.usage
    return {
        "prompt": {"text": prompt_text, "tokens": result.prompt},
        "outputs": [
            {"text": one.text, "tokens": one.tokens, "finish": one.finish, "score": one.score}
            for one in result.outputs
        ],
        "usage": {name: getattr(usage, name) for name in usage.__struct_fields__},
    }


def check_outputs(options: RunOptions) -> None:
    """Refuse, before any work is done, what could not be written."""
    taken: dict[Path, str] = {}
    for name, path in _wanted(options):
        check_file(f"--{name}", path)
        other = taken.setdefault(real_place(path), name)
        if other != name:
            raise UserError(f"--{name}={path}: --{other} is the same file; choose another")


def write_outputs(options: RunOptions, generated: Generated) -> list[Path]:
    """Each file appears whole."""
    for name, path in _wanted(options):
        with new_file(f"--{name}", path) as draft:
            _WRITERS[name](generated, draft)
    return [path for _, path in _wanted(options)]


def _wanted(options: RunOptions) -> list[tuple[str, Path]]:
    paths = ((name, getattr(options, name)) for name in _WRITERS)
    return [(name, path) for name, path in paths if path is not None]


def _csv(generated: Generated, draft: Path) -> None:
    with draft.open("w", newline="", encoding="ascii") as file:
        rows = [output.tokens for result in generated.results for output in result.outputs]
        csv.writer(file, lineterminator="\n").writerows(rows)


def _npy(generated: Generated, draft: Path) -> None:
    tokens = np.full(generated.lengths, generated.fill, np.int32)
    generated.filled(tokens, lambda output: output.tokens)
    _save(draft, tokens)


def _json(generated: Generated, draft: Path) -> None:
    text = json.dumps(generated.to_json(), indent=2, ensure_ascii=False)
    draft.write_text(text + "\n", encoding="utf-8")


def _log_probs(generated: Generated, draft: Path) -> None:
    values = np.zeros(generated.lengths, np.float32)
    generated.filled(values, lambda output: [one.sampled for one in output.logprobs])
    _save(draft, values)


def _logits(generated: Generated, draft: Path) -> None:
    """Text after text, as all of it at once may be more than the memory that is left."""
    rows = [output.logits for result in generated.results for output in result.outputs]
    found = [row for row in rows if row is not None]
    length, width = generated.lengths[2], found[0].shape[1]
    shape = (*generated.lengths, width)
    with draft.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
        for row in found:
            file.write(row.astype("<f4", copy=False).tobytes())
            file.write(bytes(4 * width * (length - len(row))))


def _save(draft: Path, array: NDArray[Any]) -> None:
    with draft.open("wb") as file:  # by a name, numpy would add an ending to it
        np.save(file, array)


_WRITERS: Mapping[str, Callable[[Generated, Path], None]] = {
    "output_csv": _csv,
    "output_npy": _npy,
    "output_json": _json,
    "output_logits_npy": _logits,
    "output_log_probs_npy": _log_probs,
}
"""By option."""
