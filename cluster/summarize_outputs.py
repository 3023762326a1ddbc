"""Every article's summaries in files, one a model, as far as it came."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from builders.errors import UserError
from cluster.dataset import Article
from cluster.judging import Judged


class SummaryFiles:
    """A line for every article; without a folder there are none."""

    def __init__(self, folder: Path | None, names: Sequence[str]) -> None:
        """What cannot be written is found here, before work is done; what is there stays until then."""
        self._files: Mapping[str, Path] = {}
        if folder is None:
            return
        with _one_line(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._files = {name: folder / f"{name}.jsonl" for name in names}
            for file in self._files.values():
                file.open("ab").close()

    def add(self, name: str, at: int, articles: Sequence[Article], found: Sequence[Sequence[Judged]]) -> None:
        """A batch of one model, and the number of its first article: the very first begins the file."""
        if (file := self._files.get(name)) is None:
            return
        rows = enumerate(zip(articles, found, strict=True), at)
        lines = [_line(number, article, beams) for number, (article, beams) in rows]
        with _one_line(file), file.open("a" if at else "w", encoding="utf-8") as opened:
            opened.writelines(lines)


def _line(number: int, article: Article, beams: Sequence[Judged]) -> str:
    summaries = [one.to_json() for one in beams]
    row = {"article": number, "highlights": article.highlights, "summaries": summaries}
    return json.dumps(row, ensure_ascii=False) + "\n"


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--output_dir: {path} cannot be written ({error.strerror}); choose another folder"
        ) from error
