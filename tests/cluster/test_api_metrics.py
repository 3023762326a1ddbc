"""/metrics of a server under load, against what its callers were told; and the dashboard against /metrics."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import promql_parser as promql
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from actors.engine_stats import EngineStats
from actors.open_generator import GeneratorOptions
from cluster.local_app import local_app
from tests.cluster.api_server import TEMPLATE, fake_app, serving
from tests.cluster.fake_engine import FakeEngine, named
from tests.cluster.run_engines import make
from tests.cluster.test_api_bytes import COMPLETION, TOKENS, eventually

DASHBOARD = Path(__file__).parent.parent.parent / "docs/grafana.json"
MODEL = {"model_name": "tiny"}
TEXTS, LONG = 3, 20
SYSTEM = "the quick brown fox jumps over the lazy dog"


def samples(text: str) -> list[Sample]:
    return [one for family in text_string_to_metric_families(text) for one in family.samples]


def value(found: Sequence[Sample], name: str, **labels: str) -> float:
    """Of the one sample that is named so, after the prefix."""
    wanted = (f"rankforge:{name}", {**MODEL, **labels})
    (sample,) = (one for one in found if (one.name, one.labels) == wanted)
    return sample.value


class Load:
    """What many callers were told, and what was scraped meanwhile."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.usages: list[dict[str, int]] = []
        self.finished: list[str] = []
        self.scraped: list[list[Sample]] = []

    def run(self) -> None:
        ended = threading.Event()
        with httpx.Client(base_url=self.url, timeout=60) as client, ThreadPoolExecutor(9) as callers:
            watching = callers.submit(self._watch, client, ended)
            for done in [callers.submit(self._ask, client, number) for number in range(24)]:
                done.result()
            ended.set()
            watching.result()
            self.scraped.append(samples(client.get("/metrics").text))

    def _watch(self, client: httpx.Client, ended: threading.Event) -> None:
        while not ended.wait(0.01):
            self.scraped.append(samples(client.get("/metrics").text))

    def _ask(self, client: httpx.Client, number: int) -> None:
        """Prompts that begin alike; every other one as a stream."""
        wish = {"model": "tiny", "prompt": f"{SYSTEM} {number % 8}", "max_tokens": LONG, "n": TEXTS}
        if number % 2:
            answer = client.post("/v1/completions", json=wish).json()
            self._note(answer["choices"], answer["usage"])
            return
        options = {"stream": True, "stream_options": {"include_usage": True}}
        lines = client.post("/v1/completions", json={**wish, **options}).text.split("\n\n")
        parts = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        self._note([choice for part in parts for choice in part["choices"]], parts[-1]["usage"])

    def _note(self, choices: Sequence[Mapping[str, Any]], usage: dict[str, int]) -> None:
        self.usages.append(usage)
        self.finished += [choice["finish_reason"] for choice in choices if choice["finish_reason"]]

    def total(self, name: str) -> int:
        return sum(usage[name] for usage in self.usages)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """A real engine, whose cache is too small for all that it runs."""
    made = make(tmp_path_factory.mktemp("metrics"))
    options = GeneratorOptions(num_blocks=14)
    with serving(local_app(made.engine(), name="tiny", generator=options, chat_template=TEMPLATE)) as url:
        found = Load(url)
        found.run()
        yield found


def test_counts_are_what_callers_were_told(load: Load) -> None:
    last = load.scraped[-1]
    assert value(last, "prompt_tokens_total") == load.total("prompt_tokens")
    assert value(last, "generation_tokens_total") == load.total("completion_tokens")
    for reason in ("stop", "length"):
        counted = value(last, "request_success_total", finished_reason=reason)
        assert counted == load.finished.count(reason)
    assert len(load.finished) == 24 * TEXTS
    for reason in ("abort", "error"):
        assert value(last, "request_success_total", finished_reason=reason) == 0


def test_every_request_has_its_times(load: Load) -> None:
    last = load.scraped[-1]
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds"):
        assert value(last, f"{name}_count") == 24
    first, whole, queued = (
        value(last, f"{name}_seconds_sum")
        for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time")
    )
    assert 0 < queued < first < whole
    between = value(last, "inter_token_latency_seconds_count")
    assert 0 < between <= load.total("completion_tokens") - 24 * TEXTS
    assert value(last, "inter_token_latency_seconds_sum") <= whole * TEXTS
    assert value(last, "request_prompt_tokens_sum") == load.total("prompt_tokens")
    assert value(last, "request_generation_tokens_sum") == load.total("completion_tokens")


def test_the_engines_own_numbers(load: Load) -> None:
    last = load.scraped[-1]
    assert value(last, "prefix_cache_queries_total") == load.total("prompt_tokens")
    assert 0 < value(last, "prefix_cache_hits_total") < load.total("prompt_tokens")
    assert value(last, "num_preemptions_total") > 0 and value(last, "recoveries_total") == 0
    steps = value(last, "step_time_seconds_count")
    assert steps == value(last, "iteration_tokens_total_count") > LONG
    assert value(last, "iteration_tokens_total_sum") >= load.total("completion_tokens") - 24 * TEXTS
    assert value(last, "engine_ready") == 1


def test_what_it_holds_rises_and_falls(load: Load) -> None:
    used = [value(one, "kv_cache_usage_perc") for one in load.scraped]
    assert max(used) > 0.5 and used[-1] == 0 and all(0 <= one <= 1 for one in used)
    running = [value(one, "num_requests_running") for one in load.scraped]
    waiting = [value(one, "num_requests_waiting") for one in load.scraped]
    assert max(running) > 0 and max(waiting) > 0 and running[-1] == waiting[-1] == 0


def test_counters_never_fall_and_buckets_rise(load: Load) -> None:
    before: dict[Any, float] = {}
    for scrape in load.scraped:
        below: dict[Any, float] = {}
        for one in scrape:
            if one.name.endswith(("_total", "_count", "_bucket")):
                key = one.name, *sorted(one.labels.items())
                assert one.value >= before.get(key, 0), key
                before[key] = one.value
            if one.name.endswith("_bucket"):
                assert one.value >= below.get(one.name, 0), one.name
                below[one.name] = one.value


def test_names_that_vllms_users_know(load: Load) -> None:
    """As its documentation lists them, where there is such a thing here."""
    names = {one.name.removeprefix("rankforge:") for one in load.scraped[-1]}
    assert names >= {
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries_total",
        "prefix_cache_hits_total", "num_preemptions_total", "prompt_tokens_total", "generation_tokens_total",
        "iteration_tokens_total_bucket", "request_success_total", "request_prompt_tokens_bucket",
        "request_generation_tokens_bucket", "time_to_first_token_seconds_bucket",
        "inter_token_latency_seconds_bucket", "e2e_request_latency_seconds_bucket",
        "request_queue_time_seconds_bucket",
    }  # fmt: skip


def queries(*, of_ray: bool = False) -> list[str]:
    """Of the dashboard, as Grafana would send them."""
    board = json.loads(DASHBOARD.read_text())
    targets = [target for panel in board["panels"] for target in panel.get("targets", ())]
    found = [one["expr"].replace("$__rate_interval", "1m").replace("$model", ".+") for one in targets]
    return [one for one in found if ("ray_" in one) == of_ray]


def problems(query: str, exported: Sequence[Sample]) -> list[str]:
    """Metrics and labels of a query that nobody exports; `instance` is Prometheus' own."""
    found: list[str] = []
    known: set[str] = {"instance"}
    tree = promql.parse(query)
    for selector in selectors(tree):
        wanted = {one.name for one in selector.matchers.matchers}
        labels = [set(one.labels) for one in exported if one.name == selector.name]
        if not any(wanted <= one for one in labels):
            found.append(f"{selector.name} with {sorted(wanted)}")
        known.update(*labels)
    return found + sorted(grouped(tree) - known)


def selectors(tree: Any) -> list[Any]:
    return [one for one in nodes(tree) if isinstance(one, promql.VectorSelector)]


def grouped(tree: Any) -> set[str]:
    """Labels that sums are made by."""
    modifiers = [one.modifier for one in nodes(tree) if isinstance(one, promql.AggregateExpr)]
    return {label for one in modifiers if one for label in one.labels}


def nodes(tree: Any) -> list[Any]:
    """An expression and all in it."""
    names = ("expr", "lhs", "rhs", "param", "vector_selector")
    inner = [part for name in names if (part := getattr(tree, name, None)) is not None]
    inner += getattr(tree, "args", ())
    return [tree, *(one for part in inner if not isinstance(part, str) for one in nodes(part))]


@pytest.mark.parametrize("query", queries())
def test_the_dashboard_asks_for_what_there_is(query: str, load: Load) -> None:
    assert problems(query, load.scraped[-1]) == []


def test_a_query_can_be_wrong(load: Load) -> None:
    last = load.scraped[-1]
    assert problems("sum(rate(rankforge:no_such_thing[1m]))", last) == ["rankforge:no_such_thing with []"]
    wrong = 'sum by (size) (rankforge:num_requests_running{name="x"}) / 2'
    assert problems(wrong, last) == ["rankforge:num_requests_running with ['name']", "size"]
    with pytest.raises(ValueError, match="unclosed"):
        problems("sum by (", last)


def test_the_dashboard_shows_all_there_is(load: Load) -> None:
    """Every metric of ours is in a panel."""
    asked = {selector.name for query in queries() for selector in selectors(promql.parse(query))}
    exported = {one.name for one in load.scraped[-1] if one.name.startswith("rankforge:")}
    families = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in exported}
    shown = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in asked}
    assert families - shown == set()


def test_several_models_and_what_did_not_end_well() -> None:
    engines = [
        FakeEngine(TOKENS, named("one"), stuck_after=1),
        FakeEngine(TOKENS, named("two"), fails_after=1),
    ]
    engines[0].counted = EngineStats(cache_blocks=4, cache_blocks_used=1, recoveries=3)
    with serving(fake_app(*engines)) as url, httpx.Client(base_url=url) as client:
        with client.stream("POST", "/v1/completions", json={**COMPLETION, "model": "one", "stream": True}):
            pass
        client.post("/v1/completions", json={**COMPLETION, "model": "two", "stream": True})
        client.post("/v1/completions", json={**COMPLETION, "model": "../three\n"})
        client.get("/v1/never/heard/of")

        def counted(name: str, **labels: str) -> float | None:
            found = samples(client.get("/metrics").text)
            wanted = {"name": f"rankforge:{name}", "labels": labels}
            return next((s.value for s in found if {"name": s.name, "labels": s.labels} == wanted), None)

        for model, reason in (("one", "abort"), ("two", "error")):
            labels = {"model_name": model, "finished_reason": reason}
            eventually(lambda labels=labels: counted("request_success_total", **labels) == 1)
            assert counted("time_to_first_token_seconds_count", model_name=model) == 1
            assert counted("e2e_request_latency_seconds_count", model_name=model) == 0
        assert counted("recoveries_total", model_name="one") == 3
        assert counted("kv_cache_usage_perc", model_name="one") == 0.25
        assert counted("http_requests_total", route="/v1/completions", status="404") == 1
        assert counted("http_requests_total", route="other", status="404") == 1
        client.get("/v1/models/one")
        assert counted("http_requests_total", route="/v1/models/{model}", status="200") == 1
        assert "three" not in client.get("/metrics").text and "never" not in client.get("/metrics").text
