"""Every article's summaries in files, one a model, as far as it came."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from builders.errors import UserError
from cluster.dataset import Article
from cluster.judging import Judged


class SummaryFiles:
    """A line for every article; without a folder there are none."""

    def __init__(self, folder: Path | None, names: Sequence[str]) -> None:
        """Makes them, so that what cannot be written is found before work is done."""
        self._files: Mapping[str, Path] = {}
        if folder is not None:
            self._files = {name: folder / f"{name}.jsonl" for name in names}
            _begin(folder, self._files.values())

    def add(
        self, name: str, first: int, articles: Sequence[Article], found: Sequence[Sequence[Judged]]
    ) -> None:
        """A batch of one model, and the number of its first article."""
        if name not in self._files:
            return
        with self._files[name].open("a", encoding="utf-8") as file:
            for number, (article, beams) in enumerate(zip(articles, found, strict=True), first):
                row = {"article": number, "highlights": article.highlights}
                row["summaries"] = [one.to_json() for one in beams]  # type: ignore[assignment]
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _begin(folder: Path, files: Iterable[Path]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            file.write_bytes(b"")
    except OSError as error:
        raise UserError(
            f"--output_dir={folder}: cannot be written ({error.strerror}); choose another folder"
        ) from error
