"""The files of a run: what they hold, and that they are there whole or not at all."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.messages import Logprobs, Usage
from builders.errors import ArtifactError, UserError
from cluster.generation import Output, Result
from cluster.output import new_file
from cluster.run_options import RunOptions
from cluster.run_outputs import Generated, check_outputs, write_outputs

WIDTH = 5
TEXTS = [[(7, 8, 9), (4,)], [(1, 2), (3, 3)]]
"""Of two prompts, two each."""


def options(**changes: Any) -> RunOptions:
    return RunOptions(**{"engine_dir": Path("engine"), "max_output_len": 4, **changes})


def logits_of(tokens: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.outer(tokens, np.arange(WIDTH)).astype(np.float32)


def an_output(tokens: tuple[int, ...]) -> Output:
    return Output(
        tokens=tokens,
        text=f"é{tokens}",
        finish="stop",
        score=-0.5,
        logprobs=tuple(Logprobs(-float(token)) for token in tokens),
        logits=logits_of(tokens),
    )


def generated() -> Generated:
    results = [
        Result(prompt=(number, 5), outputs=tuple(map(an_output, texts)), usage=Usage(2, 4, 1))
        for number, texts in enumerate(TEXTS)
    ]
    return Generated(results=results, prompt_texts=["zero", None], fill=2, seconds={"load": 1.5})


def written(path: Path, name: str) -> Path:
    assert write_outputs(options(**{name: path}), generated()) == [path]
    return path


def test_rows_of_tokens(tmp_path: Path) -> None:
    with written(tmp_path / "out.csv", "output_csv").open() as file:
        assert list(csv.reader(file)) == [["7", "8", "9"], ["4"], ["1", "2"], ["3", "3"]]


def test_an_array_of_tokens_is_filled_up(tmp_path: Path) -> None:
    array = np.load(written(tmp_path / "out", "output_npy"))
    assert array.dtype == np.int32
    assert array.tolist() == [[[7, 8, 9], [4, 2, 2]], [[1, 2, 2], [3, 3, 2]]]


def test_an_array_of_log_probabilities(tmp_path: Path) -> None:
    array = np.load(written(tmp_path / "out.npy", "output_log_probs_npy"))
    assert array.dtype == np.float32
    assert array.tolist() == [[[-7, -8, -9], [-4, 0, 0]], [[-1, -2, 0], [-3, -3, 0]]]


def test_an_array_of_logits(tmp_path: Path) -> None:
    array = np.load(written(tmp_path / "out.npy", "output_logits_npy"))
    expected = np.zeros((2, 2, 3, WIDTH), np.float32)
    for number, texts in enumerate(TEXTS):
        for index, tokens in enumerate(texts):
            expected[number, index, : len(tokens)] = logits_of(tokens)
    assert array.dtype == np.float32 and np.array_equal(array, expected)


def test_one_document_of_everything(tmp_path: Path) -> None:
    found = json.loads(written(tmp_path / "out.json", "output_json").read_text(encoding="utf-8"))
    assert found["seconds"] == {"load": 1.5}
    first, second = found["results"]
    assert first["prompt"] == {"text": "zero", "tokens": [0, 5]} and second["prompt"]["text"] is None
    assert first["outputs"][1] == {"text": "é(4,)", "tokens": [4], "finish": "stop", "score": -0.5}
    assert first["usage"] == {"prompt_tokens": 2, "output_tokens": 4, "cached_tokens": 1}


def test_several_files_at_once_replace_what_was_there(tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("output_csv", "output_npy", "output_json")}
    paths["output_csv"].write_text("old")
    check_outputs(options(**paths))
    assert paths["output_csv"].read_text() == "old"
    assert set(write_outputs(options(**paths), generated())) == set(paths.values())
    assert {path.name for path in tmp_path.iterdir()} == set(paths)
    assert paths["output_csv"].read_text().startswith("7,8,9\n")


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    written(tmp_path / "link.csv", "output_csv")
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "real.csv").stat().st_size


def test_nothing_is_half_written(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")
    with pytest.raises(ZeroDivisionError), new_file("--output_csv", tmp_path / "out") as draft:
        draft.write_text("ne")
        raise ZeroDivisionError
    assert (tmp_path / "out").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    full = pytest.raises(ArtifactError, match=r"disk full after 2 bytes of --output_csv=")
    with full, new_file("--output_csv", tmp_path / "out") as draft:
        draft.write_text("ne")
        Path("/dev/full").write_text("w")
    assert list(tmp_path.iterdir()) == []


def refusal(**changes: Any) -> str:
    with pytest.raises(UserError) as raised:
        check_outputs(options(**changes))
    return str(raised.value)


def test_places_that_cannot_be_written_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    missing = tmp_path / "no" / "out.csv"
    assert refusal(output_csv=missing).startswith(f"--output_csv={missing}: there is no folder")
    assert "exists and is not a file" in refusal(output_npy=tmp_path)
    assert "exists and is not a file" in refusal(output_json=Path("/dev/null"))
    assert "there is no folder" in refusal(output_json=tmp_path / "file" / "out")
    assert "cannot be written" in refusal(output_json=tmp_path / ("n" * 300))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_two_outputs_in_one_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "out")
    same = {"output_csv": tmp_path / "out", "output_npy": tmp_path / "link"}
    assert "--output_csv is the same file" in refusal(**same)
