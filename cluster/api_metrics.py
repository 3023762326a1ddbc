"""/metrics: what Prometheus reads, under the names that vLLM's users know, after `rankforge:`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from actors.engine_stats import Distribution, EngineStats
from cluster.engine_client import EngineClient, EngineLoad
from cluster.request_counts import Counts, ModelCounts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ModelState(NamedTuple):
    """All that is known of one model."""

    load: EngineLoad
    stats: EngineStats
    counts: ModelCounts


Number = Callable[[ModelState], float]
Spread = Callable[[ModelState], Distribution | None]

_GAUGES: Mapping[str, tuple[str, Number]] = {
    "num_requests_running": ("Requests that have got a token and get more.", lambda one: one.load.running),
    "num_requests_waiting": ("Requests that have no token yet.", lambda one: one.load.waiting),
    "kv_cache_usage_perc": (
        "Blocks of the cache that sequences hold; 1 is all.",
        lambda one: one.stats.cache_blocks_used / max(1, one.stats.cache_blocks),
    ),
    "engine_ready": (
        "Whether the engine takes requests.",
        lambda one: not (one.load.failure or one.load.recovering),
    ),
}
_COUNTERS: Mapping[str, tuple[str, Number]] = {
    "prompt_tokens": ("Tokens of prompts that got a token.", lambda one: one.counts.prompt_tokens),
    "generation_tokens": ("Tokens that callers were given.", lambda one: one.counts.generation_tokens),
    "prefix_cache_queries": (
        "Tokens of prompts looked up in the cache.",
        lambda one: one.stats.prefix_queries,
    ),
    "prefix_cache_hits": ("Tokens of prompts found in the cache.", lambda one: one.stats.prefix_hits),
    "num_preemptions": ("Sequences sent back to wait for want of blocks.", lambda one: one.stats.preemptions),
    "recoveries": ("Ranks started again after one failed.", lambda one: one.stats.recoveries),
    "recovery_seconds": ("That they took to be ready again.", lambda one: one.stats.recovery_seconds),
}
_HISTOGRAMS: Mapping[str, tuple[str, Spread]] = {
    "time_to_first_token_seconds": (
        "From a request's arrival to its first token.",
        lambda one: one.counts.first_s.seen,
    ),
    "inter_token_latency_seconds": (
        "From a text's token to its next, as the API gets them.",
        lambda one: one.counts.between_s.seen,
    ),
    "e2e_request_latency_seconds": (
        "From a request's arrival to its last token.",
        lambda one: one.counts.whole_s.seen,
    ),
    "request_prompt_tokens": (
        "Of requests that were answered, prompts together.",
        lambda one: one.counts.prompt_sizes.seen,
    ),
    "request_generation_tokens": (
        "Of requests that were answered, texts together.",
        lambda one: one.counts.answer_sizes.seen,
    ),
    "request_queue_time_seconds": (
        "From a request's arrival at the engine to its slot there.",
        lambda one: one.stats.queue_seconds,
    ),
    "step_time_seconds": ("From one step's result to the next.", lambda one: one.stats.step_seconds),
    "iteration_tokens_total": ("Tokens that a step computed.", lambda one: one.stats.step_tokens),
}


class ApiMetrics(Collector):
    """Nothing is counted here: what others count is looked at when it is asked for."""

    def __init__(self, counts: Counts, engines: Callable[[], Mapping[str, EngineClient]]) -> None:
        self._counts, self._engines = counts, engines
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Not known before models are served."""
        return []

    def collect(self) -> Iterable[Metric]:
        models = {
            name: ModelState(engine.load(), engine.stats(), self._counts.models[name])
            for name, engine in self._engines().items()
        }
        yield from (_gauge(name, *known, models) for name, known in _GAUGES.items())
        yield from (_counter(name, *known, models) for name, known in _COUNTERS.items())
        yield from (_histogram(name, *known, models) for name, known in _HISTOGRAMS.items())
        yield _finished(models)
        yield _answers(self._counts)


def _gauge(name: str, text: str, value: Number, models: Mapping[str, ModelState]) -> Metric:
    found = GaugeMetricFamily(f"rankforge:{name}", text, labels=["model_name"])
    for model, state in models.items():
        found.add_metric([model], float(value(state)))
    return found


def _counter(name: str, text: str, value: Number, models: Mapping[str, ModelState]) -> Metric:
    found = CounterMetricFamily(f"rankforge:{name}", text, labels=["model_name"])
    for model, state in models.items():
        found.add_metric([model], float(value(state)))
    return found


def _histogram(name: str, text: str, spread: Spread, models: Mapping[str, ModelState]) -> Metric:
    """Prometheus counts what is up to a bound, not between two."""
    found = HistogramMetricFamily(f"rankforge:{name}", text, labels=["model_name"])
    for model, state in models.items():
        if seen := spread(state):
            bounds = [*(f"{bound:g}" for bound in seen.bounds), "+Inf"]
            buckets = list(zip(bounds, accumulate(seen.counts), strict=True))
            found.add_metric([model], buckets, seen.total)
    return found


def _finished(models: Mapping[str, ModelState]) -> Metric:
    found = CounterMetricFamily(
        "rankforge:request_success", "Texts, by how they ended.", labels=["model_name", "finished_reason"]
    )
    for model, state in models.items():
        for reason in ("stop", "length", "abort", "error"):
            found.add_metric([model, reason], state.counts.finished[reason])
    return found


def _answers(counts: Counts) -> Metric:
    found = CounterMetricFamily(
        "rankforge:http_requests", "Requests, by route and status.", labels=["route", "status"]
    )
    for (route, status), number in counts.answers.items():
        found.add_metric([route, status], number)
    return found
