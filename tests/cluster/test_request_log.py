"""A line of JSON for every request, and what is not in it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.access import Access
from cluster.request_log import LOG, log_requests_to
from tests.cluster.api_server import fake_app, serving
from tests.cluster.fake_engine import FakeEngine
from tests.cluster.test_api_access import Keys
from tests.cluster.test_api_bytes import CHAT, COMPLETION, TOKENS, eventually

SECRET = "my bank says 4711"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """All lines of a test."""
    before = LOG.handlers[:], LOG.level, LOG.propagate
    stream = io.StringIO()
    log_requests_to(stream)
    yield stream
    LOG.handlers[:], LOG.level, LOG.propagate = before


@contextmanager
def client_of(engine: FakeEngine, **access: Any) -> Iterator[httpx.Client]:
    with serving(fake_app(engine, access=Access(**access))) as url, httpx.Client(base_url=url) as client:
        yield client


def lines(written: io.StringIO, count: int) -> list[dict[str, Any]]:
    eventually(lambda: written.getvalue().count("\n") >= count)
    found = [json.loads(line) for line in written.getvalue().splitlines()]
    assert len(found) == count
    return found


def test_a_log_in_a_file(written: io.StringIO, tmp_path: Path) -> None:
    """Which is not there before it has a line."""
    log_requests_to(file := tmp_path / "requests.jsonl")
    with client_of(FakeEngine(TOKENS)) as client:
        assert client.get("/health").status_code == 200 and not file.exists()
        client.get("/v1/models", headers={"x-request-id": "mine-2"})
        eventually(file.exists)
    LOG.handlers[0].close()
    assert json.loads(file.read_text())["id"] == "mine-2" and not written.getvalue()


def test_what_a_line_says(written: io.StringIO, tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    user = keys.add("alice")
    with client_of(FakeEngine(TOKENS), keys_file=keys.path) as client:
        headers = {**user, "x-request-id": "mine-1"}
        url, body = "/v1/completions?key=hidden", {**COMPLETION, "n": 2}
        answer = client.post(url, json=body, headers=headers).json()
        (line,) = lines(written, 1)
    usage = answer["usage"]
    assert 0 < line.pop("first_token_s") <= line.pop("seconds") < 60 and line.pop("time") > 1.7e9
    assert line == {
        "id": "mine-1",
        "key": "alice",
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "model": "fake",
        "answer": answer["id"],
        "prompt_tokens": usage["prompt_tokens"],
        "cached_tokens": 0,
        "completion_tokens": usage["completion_tokens"],
        "finish": ["length", "length"],
    }


@pytest.mark.parametrize("stream", [False, True])
def test_no_words_unless_they_are_asked_for(written: io.StringIO, stream: bool) -> None:
    messages = [{"role": "user", "content": SECRET}]
    with client_of(FakeEngine(TOKENS)) as client:
        chat = {**CHAT, "messages": messages, "stream": stream, "stop": SECRET}
        client.post("/v1/chat/completions", json=chat)
        client.post("/v1/completions", json={**COMPLETION, "prompt": [SECRET], "n": 99, "user": SECRET})
        client.post("/v1/completions", json={"model": SECRET, "prompt": SECRET})
        client.post("/tokenize", json={"prompt": SECRET})
        client.post("/v1/completions", content=SECRET, headers={"content-type": "application/json"})
        assert [line["status"] for line in lines(written, 5)] == [200, 400, 404, 200, 400]
    assert "4711" not in written.getvalue()


def test_with_them_on_an_explicit_option(written: io.StringIO) -> None:
    messages = [{"role": "user", "content": SECRET}]
    with client_of(FakeEngine(TOKENS), log_prompts=True) as client:
        client.post("/v1/chat/completions", json={**CHAT, "messages": messages})
        client.post("/v1/completions", json={**COMPLETION, "prompt": [SECRET]})
        chat, text = lines(written, 2)
    assert chat["prompt"][0]["content"] == SECRET and text["prompt"] == [SECRET]


def test_refusals_and_probes(written: io.StringIO, tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    with client_of(FakeEngine(TOKENS), keys_file=keys.path) as client:
        client.get("/health")
        client.get("/ready")
        client.get("/v1/%0a{%22" + "a" * 500)
        unknown, long = lines(written, 2)
    assert (unknown["path"], unknown["status"], unknown["error"]) == ("/ready", 401, "invalid_request_error")
    assert unknown["key"] is None and len(long["path"]) == 200


def test_a_caller_who_leaves(written: io.StringIO) -> None:
    with client_of(FakeEngine(TOKENS, stuck_after=2)) as client:
        with client.stream("POST", "/v1/completions", json={**COMPLETION, "stream": True}) as response:
            next(response.iter_raw())
        (line,) = lines(written, 1)
    assert line["left"] is True and line["status"] == 200 and line["finish"] == ["abort"]
    assert line["completion_tokens"] in (1, 2)


@pytest.mark.parametrize("after", [0, 2])
def test_an_engine_that_fails(written: io.StringIO, after: int) -> None:
    with client_of(FakeEngine(TOKENS, fails_after=after)) as client:
        client.post("/v1/completions", json={**COMPLETION, "stream": True})
        (line,) = lines(written, 1)
    assert line["error"] == "fake: the engine failed: rank 1 died" and line["finish"] == ["error"]
    assert line["status"] == (200 if after else 503)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("after", [0, 2])
def test_a_text_that_cannot_go_on(written: io.StringIO, tmp_path: Path, after: int, stream: bool) -> None:
    """What was begun is counted and charged, what was refused is not."""
    keys = Keys(tmp_path / "keys.json")
    user = keys.add("alice", tokens_per_minute=100)
    engine = FakeEngine(TOKENS, ends_after=after)
    with client_of(engine, keys_file=keys.path) as client:
        wish = {**COMPLETION, "prompt": [5] * 60, "stream": stream}
        client.post("/v1/completions", json=wish, headers=user)
        (line,) = lines(written, 1)
        again = client.post("/v1/completions", json=wish, headers=user)
    assert line["error"] == "invalid_value" and line["status"] == (200 if stream and after else 400)
    assert (line["completion_tokens"], line["finish"]) == ((2, ["error"]) if after else (0, []))
    assert again.status_code == (429 if after else 400)


def test_a_mistake_of_the_server(written: io.StringIO) -> None:
    with client_of(FakeEngine(TOKENS, mistake=ZeroDivisionError(SECRET))) as client:
        client.post("/v1/completions", json=COMPLETION)
        (line,) = lines(written, 1)
    assert (line["status"], line["error"]) == (500, "ZeroDivisionError") and SECRET not in written.getvalue()


def test_no_log(written: io.StringIO) -> None:
    with client_of(FakeEngine(TOKENS), log_requests=False) as client:
        client.post("/v1/completions", json=COMPLETION)
    assert written.getvalue() == "" and LOG.isEnabledFor(logging.INFO)
