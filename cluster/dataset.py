"""Articles and their highlights: lines of a local file, or a dataset of the hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from builders.errors import SourceError, UserError
from cluster.prompts import SURROGATE

_RULE = 'every line is a JSON object with the texts "article" and "highlights"'


@dataclass(frozen=True, kw_only=True)
class Article:
    """A text to summarize."""

    text: str
    highlights: str
    """What people made of it, a sentence a line."""


def read_articles(dataset: str, split: str, count: int) -> list[Article]:
    """The first so many, in their order: of a file, or of an id with its configuration as `id:name`."""
    path = Path(dataset).expanduser()
    found = _lines(path) if _is_file(path) else _rows(dataset, split)
    articles = list(islice(found, count))
    if not articles:
        raise SourceError(f"--dataset={dataset}: holds no article; {_RULE}")
    return articles


def _is_file(path: Path) -> bool:
    """Whether it is one; what can only be meant as one must be there."""
    try:
        if path.is_file():
            return True
    except OSError as error:
        raise SourceError(f"--dataset={path}: cannot be read ({error.strerror})") from error
    if path.suffix in (".json", ".jsonl", ".txt") or (path.is_absolute() and not path.exists()):
        raise SourceError(f"--dataset={path}: no such file; give a JSONL file or a dataset of the hub")
    return False


def _lines(path: Path) -> Iterator[Article]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _article(_parsed(line, f"{path}:{number}"), f"{path}:{number}")
    except OSError as error:
        raise SourceError(f"--dataset={path}: cannot be read ({error.strerror})") from error


def _parsed(line: bytes, place: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:  # of JSON, or of UTF-8
        raise SourceError(f"{place}: not JSON ({error}); {_RULE}") from error


def _article(row: Any, place: str) -> Article:
    if not isinstance(row, Mapping):
        raise SourceError(f"{place}: is no object; {_RULE}")
    for name in ("article", "highlights"):
        value = row.get(name)
        if not isinstance(value, str) or not value.strip():
            what = f"has no {name!r}" if value is None else f"{name!r} is no text, or empty"
            raise SourceError(f"{place}: {what}; {_RULE}")
        if SURROGATE.search(value):  # JSON can escape half a character
            raise SourceError(
                f"{place}: {name!r} has half a character, such as \\ud800; write it whole; {_RULE}"
            )
    return Article(text=row["article"], highlights=row["highlights"])


def _rows(dataset: str, split: str) -> Iterator[Article]:
    """As they come: of a large dataset, only what is wanted is fetched."""
    name, _, configuration = dataset.partition(":")
    with _one_line(dataset):
        rows: Iterable[Any] = _load_dataset(dataset)(name, configuration or None, split=split, streaming=True)
        for number, row in enumerate(rows):
            yield _article(row, f"--dataset={dataset}: row {number}")


def _load_dataset(dataset: str) -> Any:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError(
            f"--dataset={dataset}: is no file here, and the library that fetches from the hub is missing; "
            "pip install 'rankforge[eval]', or give a JSONL file"
        ) from error
    return load_dataset


@contextmanager
def _one_line(dataset: str) -> Iterator[None]:
    """What the library and the network say."""
    from huggingface_hub.errors import HfHubHTTPError

    transport: type[Exception] = HfHubHTTPError.__bases__[0]  # the HTTP library's own error
    try:
        yield
    except (OSError, ValueError, HfHubHTTPError, transport) as error:
        why = " ".join(str(error).split())
        raise SourceError(
            f"--dataset={dataset}: cannot be fetched ({why}); check the id, the split and the network, "
            "or give a JSONL file"
        ) from error
