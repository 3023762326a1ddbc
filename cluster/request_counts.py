"""What all requests took, by model: plain numbers, for one event loop; `api_metrics.py` writes them out."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from actors.engine_stats import Buckets
from cluster.request_record import RequestRecord

FIRST_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160,
)  # fmt: skip
BETWEEN_S = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3,
    0.5, 0.75, 1, 2.5, 5, 10,
)  # fmt: skip
WHOLE_S = (
    0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920,
)  # fmt: skip
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


@dataclass(slots=True)
class ModelCounts:
    """Of one model, since the application started."""

    prompt_tokens: int = 0
    """Of requests that have got a token."""
    generation_tokens: int = 0
    """That callers were given."""
    finished: Counter[str] = field(default_factory=Counter)
    """Texts, by how they ended."""
    first_s: Buckets = field(default_factory=lambda: Buckets(FIRST_S))
    between_s: Buckets = field(default_factory=lambda: Buckets(BETWEEN_S))
    whole_s: Buckets = field(default_factory=lambda: Buckets(WHOLE_S))
    prompt_sizes: Buckets = field(default_factory=lambda: Buckets(TOKENS))
    answer_sizes: Buckets = field(default_factory=lambda: Buckets(TOKENS))


class Counts:
    """Of an application. Models and routes are those that there are: callers cannot make more of them."""

    def __init__(self) -> None:
        self.models: dict[str, ModelCounts] = {}
        self.answers: defaultdict[tuple[str, str], int] = defaultdict(int)
        """By route and status."""
        self.routes: frozenset[str] = frozenset()

    def serve(self, models: list[str]) -> None:
        """Those of before keep their counts."""
        for name in models:
            self.models.setdefault(name, ModelCounts())

    def end(self, record: RequestRecord) -> None:
        """A request has its answer, or will get none."""
        self.answers[self._route(record.path), str(record.status)] += 1

    def _route(self, path: str) -> str:
        """The routes' own words: callers choose no labels."""
        if path in self.routes:
            return path
        return "/v1/models/{model}" if path.startswith("/v1/models/") else "other"
