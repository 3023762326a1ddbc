"""What models did with the same articles: as data, and as a table with one column for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from statistics import median
from typing import Any

from cluster.dataset import Article
from cluster.judging import Judged, Perplexity, mean_perplexity
from cluster.rouge import LABELS, Rouge, mean
from cluster.summaries import Prompt


@dataclass(frozen=True, kw_only=True)
class Column:
    """What one model did."""

    name: str
    load_s: float
    batch_s: tuple[float, ...]
    """How long every batch took."""
    judged: tuple[tuple[Judged, ...], ...]
    """Of every article, in order, every beam."""

    @property
    def output_tokens(self) -> int:
        """Of all texts, with those that ended them."""
        return sum(len(one.text.tokens) for one in chain.from_iterable(self.judged))

    @property
    def tokens_per_s(self) -> float:
        """Of all texts together."""
        return self.output_tokens / sum(self.batch_s)

    @property
    def rouge(self) -> list[Rouge]:
        """By beam, a mean over articles."""
        return [mean([one.rouge for one in beam]) for beam in zip(*self.judged, strict=True)]

    @property
    def perplexity(self) -> list[Perplexity] | None:
        """The same, if it was asked for."""
        beams = [
            [one.perplexity for one in beam if one.perplexity] for beam in zip(*self.judged, strict=True)
        ]
        return [mean_perplexity(beam) for beam in beams] if all(beams) else None

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the texts."""
        return {
            "load_s": self.load_s,
            "latency_s": sum(self.batch_s),
            "batch_s": list(self.batch_s),
            "output_tokens": self.output_tokens,
            "tokens_per_s": self.tokens_per_s,
            "rouge": [asdict(one) for one in self.rouge],
            "perplexity": self.perplexity and [asdict(one) for one in self.perplexity],
        }


@dataclass(frozen=True, kw_only=True)
class SummarizeResult:
    """What all models did."""

    articles: tuple[Article, ...]
    prompts: tuple[Prompt, ...]
    columns: tuple[Column, ...]

    @property
    def num_prompt_tokens(self) -> int:
        """Of all articles."""
        return sum(map(len, self.prompts))

    @property
    def num_same(self) -> int | None:
        """Articles of which all models made the same tokens, if there are several models."""
        if len(self.columns) < 2:
            return None
        rows = zip(*(column.judged for column in self.columns), strict=True)
        return sum(len({tuple(one.text.tokens for one in beams) for beams in row}) == 1 for row in rows)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "articles": len(self.articles),
            "prompt_tokens": self.num_prompt_tokens,
            "same_tokens": self.num_same,
            **{column.name: column.to_json() for column in self.columns},
        }

    def to_text(self) -> str:
        """The first article and its summaries, then the table."""
        return "\n".join([*self._first(), "", *_aligned(self._rows())])

    def _first(self) -> list[str]:
        first = self.articles[0]
        told = [(column.name, column.judged[0][0].text.text) for column in self.columns]
        parts = [("article", first.text), ("highlights", first.highlights), *told]
        return [f"{name}: {' '.join(text.split())}" for name, text in parts]

    def _rows(self) -> list[list[str]]:
        counts = f"{len(self.articles)} articles, {self.num_prompt_tokens:,} tokens"
        rows = [[counts, *(column.name for column in self.columns)]]
        rows += [[label, *map(show, self.columns)] for label, show in _TIMES]
        rouge = [column.rouge for column in self.columns]
        perplexity = [column.perplexity for column in self.columns]
        for beam in range(len(rouge[0])):
            prefix = f"beam {beam} " if len(rouge[0]) > 1 else ""
            rows += _table(prefix, LABELS, [one[beam] for one in rouge], ".2f")
            rows += _table(prefix, _PERPLEXITIES, [one[beam] for one in perplexity if one], ".3f")
        if self.num_same is not None:
            rows.append(["the same tokens", f"{self.num_same} of {len(self.articles)}"])
        return rows


_TIMES: Sequence[tuple[str, Callable[[Column], str]]] = (
    ("loading", lambda column: f"{column.load_s:.2f} s"),
    ("latency", lambda column: f"{sum(column.batch_s):.2f} s"),
    ("latency of a batch, median", lambda column: f"{median(column.batch_s):.3f} s"),
    ("latency of a batch, longest", lambda column: f"{max(column.batch_s):.3f} s"),
    ("output tokens", lambda column: f"{column.output_tokens:,}"),
    ("tokens per second", lambda column: f"{column.tokens_per_s:,.1f}"),
)
_PERPLEXITIES = {
    "both": "perplexity",
    "prompt": "perplexity of prompts",
    "summary": "perplexity of summaries",
}


def _table(
    prefix: str, labels: dict[str, str], values: Sequence[Rouge | Perplexity], form: str
) -> list[list[str]]:
    """A row for every name, a column for every model."""
    cells = [asdict(one) for one in values]
    return [
        [prefix + label, *("-" if one[name] is None else f"{one[name]:{form}}" for one in cells)]
        for name, label in labels.items()
        if cells
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Names to the left, numbers to the right."""
    label = max(len(row[0]) for row in rows)
    width = max(map(len, chain.from_iterable(row[1:] for row in rows)))
    return [row[0].ljust(label) + "".join(f"  {cell:>{width}}" for cell in row[1:]) for row in rows]
