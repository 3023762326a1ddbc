"""When the tokens of one request reached the API, and what became of its texts."""

from __future__ import annotations

import time
from collections.abc import Sequence

from cluster.growing_text import GrowingText, Growth
from cluster.request_counts import ModelCounts
from cluster.request_record import RequestRecord


class TokenWatch:
    """Counts as tokens come: less than a microsecond for each."""

    __slots__ = ("_counts", "_known", "_last_s", "_prompt_tokens", "_record", "_texts")

    def __init__(
        self, counts: ModelCounts, record: RequestRecord, prompt_tokens: int, texts: Sequence[GrowingText]
    ) -> None:
        self._counts, self._record, self._texts = counts, record, texts
        record.prompt_tokens = self._prompt_tokens = prompt_tokens
        self._known = [0] * len(texts)
        self._last_s = [0.0] * len(texts)

    def take(self, grown: Sequence[tuple[int, Growth]]) -> None:
        """What has come together has one time; tokens of one text share the time since its last."""
        now_s = time.perf_counter()
        if self._record.first_token_s is None:
            self._begin(now_s)
        counts, known, last_s = self._counts, self._known, self._last_s
        for index, _ in grown:
            before, known[index] = known[index], self._texts[index].num_tokens
            if new := known[index] - before:
                counts.generation_tokens += new
                if before:
                    counts.between_s.add((now_s - last_s[index]) / new, new)
                last_s[index] = now_s

    def fail(self, error: str) -> None:
        """Whether its caller is told by a status or by an event."""
        self._record.error = error

    def end(self, cached_tokens: int, *, has_failed: bool) -> None:
        """The request is over."""
        record, counts = self._record, self._counts
        unfinished = "error" if has_failed or record.error else "abort"
        record.finish = [text.finish or unfinished for text in self._texts]
        record.completion_tokens, record.cached_tokens = sum(self._known), cached_tokens
        record.charged_tokens = self._prompt_tokens + record.completion_tokens
        counts.finished.update(record.finish)
        if all(text.finish for text in self._texts):
            counts.whole_s.add(time.perf_counter() - record.started_s)
            counts.prompt_sizes.add(self._prompt_tokens)
            counts.answer_sizes.add(record.completion_tokens)

    def _begin(self, now_s: float) -> None:
        self._record.first_token_s = now_s - self._record.started_s
        self._counts.first_s.add(self._record.first_token_s)
        self._counts.prompt_tokens += self._prompt_tokens
