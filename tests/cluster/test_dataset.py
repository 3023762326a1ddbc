"""Articles from files and from the library of the hub, and everything that is wrong with some."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from builders.errors import SourceError, UserError
from cluster.dataset import Article, read_articles

ROWS = [{"article": f"text {number}", "highlights": f"sum {number}", "id": number} for number in range(4)]
ARTICLES = [Article(text=f"text {number}", highlights=f"sum {number}") for number in range(4)]
HAS_LIBRARY = importlib.util.find_spec("datasets") is not None


def saved(file: Path, *lines: Any) -> str:
    """As JSON, but for those that are bytes already."""
    content = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    file.write_bytes(b"\n".join(content) + b"\n")
    return str(file)


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_the_first_so_many_in_order(count: int, tmp_path: Path) -> None:
    name = saved(tmp_path / "some.data", ROWS[0], b"", *ROWS[1:], b"  ")
    assert read_articles(name, "test", count) == ARTICLES[:count]


def test_what_is_not_wanted_is_not_read(tmp_path: Path) -> None:
    name = saved(tmp_path / "x.jsonl", *ROWS[:2], b"broken")
    assert read_articles(name, "test", 2) == ARTICLES[:2]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"article": "x"', r"x\.jsonl:3: not JSON"),
        (b'{"article": "\xff"}', r"x\.jsonl:3: not JSON"),
        (["article", "highlights"], r"x\.jsonl:3: is no object"),
        ({"article": "x"}, r"x\.jsonl:3: has no 'highlights'"),
        ({"text": "x", "highlights": "y"}, r"x\.jsonl:3: has no 'article'"),
        ({"article": " ", "highlights": "y"}, r"x\.jsonl:3: 'article' is no text, or empty"),
        ({"article": "x\ud800", "highlights": "y"}, r"x\.jsonl:3: 'article' has half a character"),
        ({"article": "x", "highlights": "\udfff"}, r"x\.jsonl:3: 'highlights' has half a character"),
        ({"article": "x", "highlights": ["y"]}, r"x\.jsonl:3: 'highlights' is no text, or empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_line_is_named(line: Any, words: str, tmp_path: Path) -> None:
    name = saved(tmp_path / "x.jsonl", ROWS[0], b"", line)
    with pytest.raises(SourceError, match=words) as caught:
        read_articles(name, "test", 9)
    assert 'the texts "article" and "highlights"' in str(caught.value)


def test_files_that_hold_nothing_or_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"empty\.jsonl: holds no article"):
        read_articles(saved(tmp_path / "empty.jsonl"), "test", 1)
    for missing in (tmp_path / "missing", "missing.jsonl", "folder/missing.json"):
        with pytest.raises(SourceError, match="no such file; give a JSONL file or a dataset of the hub"):
            read_articles(str(missing), "test", 1)
    with pytest.raises(SourceError, match="cannot be read"):
        read_articles("x" * 5000, "test", 1)


def test_without_the_library_its_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'rankforge\[eval\]', or give a JSONL file"):
        read_articles("abisee/cnn_dailymail:3.0.0", "test", 1)


@pytest.mark.skipif(not HAS_LIBRARY, reason="takes the library")
def test_a_dataset_through_the_library(tmp_path: Path) -> None:
    for name in ("whole", "other"):
        (tmp_path / name).mkdir()
    saved(tmp_path / "whole/test.jsonl", *ROWS)
    saved(tmp_path / "other/test.jsonl", {"article": "x", "summary": "y"})
    assert read_articles(str(tmp_path / "whole"), "test", 3) == ARTICLES[:3]
    with pytest.raises(SourceError, match="row 0: has no 'highlights'"):
        read_articles(str(tmp_path / "other"), "test", 3)
    with pytest.raises(SourceError, match=r"cannot be fetched \(Bad split: dev"):
        read_articles(str(tmp_path / "whole"), "dev", 3)
