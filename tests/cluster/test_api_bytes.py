"""The API byte by byte, over an engine that has every token at once: framing, leaving, limits, refusals."""

from __future__ import annotations

import copy
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from cluster.api_config import ApiConfig
from tests.actors.test_detokenizer import byte_level, byte_tokens
from tests.cluster.api_server import fake_app, serving
from tests.cluster.fake_engine import FakeEngine, named

SENTENCE = "the quick brown fox jumps over the lazy dog"
TOKENS = tuple(byte_level().encode(SENTENCE))
POST = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
COMPLETION = {"model": "fake", "prompt": "hello", "max_tokens": len(TOKENS)}
CHAT: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


@contextmanager
def client_of(engine: FakeEngine, **limits: Any) -> Iterator[httpx.Client]:
    app = fake_app(engine, config=ApiConfig(**limits))
    with serving(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with client_of(FakeEngine(TOKENS)) as client:
        yield client


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """What is wrong, in OpenAI's shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (error,) = response.json().values()
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


def eventually(holds: Callable[[], bool]) -> None:
    """Until the test's own time is over."""
    while not holds():
        time.sleep(0.01)


def test_every_event_is_a_line_and_an_empty_one(client: httpx.Client) -> None:
    response = client.post("/v1/completions", json={**COMPLETION, "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, done, rest = response.content.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"") and len(events) == len(TOKENS)
    parts = [json.loads(event.removeprefix(b"data: ")) for event in events]
    assert "".join(part["choices"][0]["text"] for part in parts) == SENTENCE
    assert [part["choices"][0]["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["length"]
    assert all("usage" not in part for part in parts)


def test_usage_beside_every_part(client: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    response = client.post("/v1/chat/completions", json={**CHAT, "stream": True, "stream_options": options})
    parts = [json.loads(line[6:]) for line in response.text.split("\n\n") if line.startswith("data: {")]
    assert [part["usage"]["completion_tokens"] for part in parts] == [1, 2, 3, 4, 4]


def test_half_a_character_is_held_back() -> None:
    with client_of(FakeEngine(byte_level().encode("größer 😀"))) as client:
        wish = {**COMPLETION, "max_tokens": 2 * len(byte_level().encode("größer 😀")), "stream": True}
        text = client.post("/v1/completions", json=wish).text
    parts = [json.loads(line[6:])["choices"][0]["text"] for line in text.split("\n\n")[:-2]]
    assert "".join(parts) == "größer 😀größer 😀" and not any("�" in part for part in parts)


@pytest.mark.parametrize("kind", [byte_level, byte_tokens])
@pytest.mark.parametrize("stream", [True, False])
def test_offsets_are_of_the_text(kind: Callable[[], PreTrainedTokenizerFast], stream: bool) -> None:
    """Tokens around a text are not in it, and one character may be of several tokens."""
    tokenizer = copy.deepcopy(kind())
    begin, prompt = tokenizer.bos_token_id, "Anna größer 😀"
    around = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    tokenizer.backend_tokenizer.post_processor = around
    tokens = tokenizer.encode(" 😀 the fox", add_special_tokens=False)
    app = fake_app(FakeEngine(tokens), tokenizer=tokenizer)
    wish = {**COMPLETION, "prompt": prompt, "max_tokens": len(tokens), "logprobs": 0, "echo": True}
    with serving(app) as url:
        answer = httpx.post(f"{url}/v1/completions", json={**wish, "stream": stream})
    parts = [json.loads(line[6:]) for line in answer.text.split("\n\n")[:-2]] if stream else [answer.json()]
    choices = [part["choices"][0] for part in parts]
    offsets = [at for choice in choices for at in choice["logprobs"]["text_offset"]]

    def length(tokens: list[int]) -> int:
        return len(str(tokenizer.decode(tokens)).rstrip("�"))

    (_, *given) = tokenizer.encode(prompt)
    assert "".join(choice["text"] for choice in choices).startswith(prompt) and length(given) == len(prompt)
    of_prompt = [length(given[:place]) for place in range(len(given))]
    of_text = [len(prompt) + length(tokens[:place]) for place in range(len(tokens))]
    assert offsets == [0, *of_prompt, *of_text]


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_ends_what_he_asked_for(stream: bool) -> None:
    engine = FakeEngine(TOKENS, stuck_after=3)
    with serving(fake_app(engine)) as url:
        body = json.dumps({**COMPLETION, "prompt": ["a", "b"], "stream": stream}).encode()
        with socket.create_connection(("127.0.0.1", urlsplit(url).port)) as caller:
            head = f"{POST}content-length: {len(body)}\r\n\r\n"
            caller.sendall(head.encode() + body)
            if stream:
                assert caller.recv(12) == b"HTTP/1.1 200"
            eventually(lambda: len(engine.submitted) == 2)
            assert engine.cancelled == []
        eventually(lambda: len(engine.cancelled) == 2)
    assert {name for name, _ in engine.cancelled} == {one.id for one in engine.submitted}


def test_who_stops_reading_keeps_no_place() -> None:
    engine = FakeEngine(TOKENS)
    with client_of(engine, max_streams=1, read_timeout_s=0.2) as client:
        body = json.dumps({**COMPLETION, "max_tokens": 8000, "n": 16, "stream": True}).encode()
        with socket.socket() as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            caller.connect(("127.0.0.1", client.base_url.port))
            caller.sendall(f"{POST}content-length: {len(body)}\r\n\r\n".encode() + body)
            assert caller.recv(12) == b"HTTP/1.1 200"
            eventually(lambda: len(engine.cancelled) == 1)
            eventually(lambda: client.post("/v1/completions", json=COMPLETION).status_code == 200)


def test_a_stop_string_ends_the_text_at_the_engine() -> None:
    engine = FakeEngine(TOKENS)
    with client_of(engine) as client:
        answer = client.post("/v1/completions", json={**COMPLETION, "stop": "ox ju", "n": 2}).json()
    assert [choice["text"] for choice in answer["choices"]] == ["the quick brown f", " quick brown f"]
    assert {index for _, index in engine.cancelled} == {0, 1, None}


def test_a_failure_before_the_first_token_has_a_status() -> None:
    with client_of(FakeEngine(TOKENS, fails_after=0)) as client:
        for stream in (True, False):
            response = client.post("/v1/completions", json={**COMPLETION, "stream": stream})
            assert error_of(response, 503)["message"] == "fake: the engine failed: rank 1 died"


def test_a_failure_after_it_is_an_event() -> None:
    with client_of(FakeEngine(TOKENS, fails_after=2)) as client:
        events = client.post("/v1/completions", json={**COMPLETION, "stream": True}).text.split("\n\n")
    assert json.loads(events[-2][6:])["error"]["code"] == "engine_failed" and len(events) == 4


def test_the_engines_refusal_is_the_callers_mistake() -> None:
    with client_of(FakeEngine(TOKENS, refusal="prompt of 9 tokens: may take 3 blocks")) as client:
        response = client.post("/v1/completions", json={**COMPLETION, "stream": True})
    assert "may take 3 blocks" in error_of(response, 400)["message"]


NOT_JSON = [
    b"", b"{", b"[]", b"nul", b'"text"', b"\xff", b"[" * 100_000, b'{"model": NaN}', b'{"a":"\xed\xa0\x80"}',
    b'{"model": "fake", "prompt": "\\ud800"}',
]  # fmt: skip


@pytest.mark.parametrize("body", NOT_JSON, ids=range(len(NOT_JSON)))
@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize"])
def test_what_is_no_json(client: httpx.Client, path: str, body: bytes) -> None:
    response = client.post(path, content=body, headers={"content-type": "application/json"})
    assert "JSON body of your request" in error_of(response, 400)["message"]


def test_another_kind_of_content(client: httpx.Client) -> None:
    """A page of another origin may send these without being asked: they are not looked at."""
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        response = client.post("/v1/completions", content=b"{}", headers={"content-type": kind})
        assert "application/json" in error_of(response, 415)["message"]
    response = client.post("/v1/completions", content=json.dumps(COMPLETION))
    assert "application/json" in error_of(response, 415)["message"]


REFUSED = [
    ({"n": 3}, "n", "above_max_value"),
    ({"n": 0}, "n", "below_min_value"),
    ({"best_of": 1, "n": 2}, "best_of", "below_min_value"),
    ({"best_of": 2, "stream": True}, "best_of", None),
    ({"use_beam_search": True, "best_of": 3}, "best_of", "above_max_value"),
    ({"use_beam_search": True, "best_of": 2, "logprobs": 1}, "logprobs", None),
    ({"logprobs": 3}, "logprobs", "above_max_value"),
    ({"logprobs": -1}, "logprobs", "below_min_value"),
    ({"max_tokens": 101}, "max_tokens", None),
    ({"max_tokens": 0}, "max_tokens", "below_min_value"),
    ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
    ({"max_tokens": True}, "max_tokens", "invalid_type"),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "invalid_value"),
    ({"temperature": -0.1}, "temperature", "invalid_value"),
    ({"top_p": 0}, "top_p", "invalid_value"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"stop": ["a", "b", "c"]}, "stop", "array_above_max_length"),
    ({"stop": ""}, "stop", "invalid_value"),
    ({"stop": "12345678901"}, "stop", "invalid_value"),
    ({"stop_token_ids": [400]}, "stop_token_ids", "invalid_value"),
    ({"logit_bias": {"1": 1, "2": 1, "3": 1}}, "logit_bias", "array_above_max_length"),
    ({"logit_bias": {"400": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"x": 1}}, "logit_bias", None),
    ({"logit_bias": {"12345678901": 1}}, "logit_bias", None),
    ({"logit_bias": {"1": 101}}, "logit_bias", "above_max_value"),
    ({"prompt": ["a", "b", "c"]}, "prompt", "array_above_max_length"),
    ({"prompt": []}, "prompt", "empty_array"),
    ({"prompt": [[]]}, "prompt", "invalid_value"),
    ({"prompt": [400]}, "prompt", "invalid_value"),
    ({"prompt": [-1]}, "prompt", "invalid_value"),
    ({"prompt": [5, "a"]}, "prompt", "invalid_type"),
    ({"prompt": [5] * 33}, "prompt", "context_length_exceeded"),
    ({"prompt": "a " * 2000}, "prompt", "context_length_exceeded"),
    ({"prompt": "a" * 9000}, "prompt", "context_length_exceeded"),
    ({"suffix": "x"}, "suffix", "unsupported_parameter"),
    ({"skip_special_tokens": False}, "skip_special_tokens", "unsupported_parameter"),
    ({"skip_special_tokens": 1}, "skip_special_tokens", "unsupported_parameter"),
    ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs", "unsupported_parameter"),
    ({"unheard_of": 1}, "unheard_of", "unknown_parameter"),
    ({"stream_options": {"include_usage": True}}, "stream_options", None),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    (
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
        "missing_required_parameter",
    ),
    ({"response_format": {"type": "json_object", "x": 1}}, "response_format.x", "unknown_parameter"),
    ({"guided_json": "{"}, "guided_json", "invalid_value"),
    ({"guided_json": "[]"}, "guided_json", "invalid_value"),
    ({"guided_json": {"not": {}}}, "guided_json", "invalid_value"),
    ({"guided_json": {"$ref": "file:///etc/passwd"}}, "guided_json", "invalid_value"),
    ({"guided_json": {"type": "integer", "multipleOf": 1e9}}, "guided_json", "invalid_value"),
    ({"guided_regex": "("}, "guided_regex", "invalid_value"),
    ({"guided_regex": "(?=a)a"}, "guided_regex", "invalid_value"),
    ({"guided_regex": "a" * 600}, "guided_regex", "invalid_value"),
    ({"guided_choice": []}, "guided_choice", "invalid_value"),
    ({"guided_grammar": "start: x"}, "guided_grammar", "unsupported_parameter"),
    ({"structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar", "unknown_parameter"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs.regex", "invalid_value"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "invalid_value"),
    ({"guided_regex": "a", "use_beam_search": True, "best_of": 2}, "guided_regex", None),
    ({"model": None}, "model", "invalid_type"),
]


@pytest.fixture(scope="module")
def strict() -> Iterator[httpx.Client]:
    limits = {"max_n": 2, "max_beams": 2, "max_stops": 2, "max_stop_chars": 10, "max_logprobs": 2}
    more = {
        "max_grammar_chars": 500,
        "max_logit_bias": 2,
        "max_prompts": 2,
        "max_prompt_tokens": 32,
        "max_tokens": 100,
    }
    engine = FakeEngine(TOKENS)
    with client_of(engine, **limits, **more, max_body_bytes=10_000) as client:
        yield client
    assert engine.submitted == []


@pytest.mark.parametrize(("fields", "param", "code"), REFUSED)
def test_limits_are_looked_at_before_work(
    strict: httpx.Client, fields: dict[str, Any], param: str, code: str | None
) -> None:
    error = error_of(strict.post("/v1/completions", json={**COMPLETION, **fields}), 400)
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")


def test_no_time_is_spent_on_what_is_too_long_at_all(strict: httpx.Client) -> None:
    text = "a" * 9000
    for path, body in (
        ("/tokenize", {"prompt": text}),
        ("/tokenize", {"messages": [{"role": "user", "content": text}]}),
        ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": text}]}),
    ):
        assert "yours has 90" in error_of(strict.post(path, json=body), 400)["message"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("tokens", [0, 101])
def test_the_field_that_was_given_is_to_blame(strict: httpx.Client, name: str, tokens: int) -> None:
    fields = {**{key: value for key, value in CHAT.items() if key != "max_tokens"}, name: tokens}
    error = error_of(strict.post("/v1/chat/completions", json=fields), 400)
    assert error["param"] == name and name in error["message"]


def test_what_takes_for_ever_to_compile_is_ended() -> None:
    """A schema of 22 parts, each twice in the one before."""
    defs: dict[str, Any] = {f"d{n}": {"allOf": 2 * [{"$ref": f"#/$defs/d{n + 1}"}]} for n in range(22)}
    hostile = {"$ref": "#/$defs/d0", "$defs": {**defs, "d22": {"type": "string", "pattern": "a.*"}}}
    with client_of(FakeEngine(TOKENS), grammar_timeout_s=0.5) as client:
        error = error_of(client.post("/v1/completions", json={**COMPLETION, "guided_json": hostile}), 400)
        assert "takes more than 0.5 s to compile" in error["message"] and error["param"] == "guided_json"
        wish = {**COMPLETION, "guided_json": {"type": "object"}}
        assert client.post("/v1/completions", json=wish).status_code == 200


MESSAGES = [
    ([], "messages"),
    ([{"role": "user"}], "messages[0].content"),
    ([{"role": "boss", "content": "x"}], "messages[0].role"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0]"),
    ([{"content": "x"}], "messages[0].role"),
    ("hello", "messages"),
]


@pytest.mark.parametrize(("messages", "param"), MESSAGES)
def test_messages_that_are_none(client: httpx.Client, messages: Any, param: str) -> None:
    assert (
        error_of(client.post("/v1/chat/completions", json={**CHAT, "messages": messages}), 400)["param"]
        == param
    )


def test_null_is_as_good_as_nothing(client: httpx.Client) -> None:
    names = ("n", "stop", "seed", "logprobs", "stream", "logit_bias", "suffix", "top_p", "unheard_of")
    nothing = dict.fromkeys((*names, "skip_special_tokens"))
    assert client.post("/v1/completions", json={**COMPLETION, **nothing}).status_code == 200


def test_what_is_done_anyway_may_be_asked_for(client: httpx.Client) -> None:
    settled = {
        "skip_special_tokens": True,
        "include_stop_str_in_output": False,
        "add_generation_prompt": True,
        "continue_final_message": False,
        "chat_template_kwargs": {},
        "prompt_cache_retention": "24h",
        "prompt_cache_key": "a",
        "safety_identifier": "b",
        "service_tier": "auto",
        "metadata": {"c": "d"},
        "store": False,
        "user": "e",
    }
    assert client.post("/v1/chat/completions", json={**CHAT, **settled}).status_code == 200


def test_a_refusal_says_which_value_is_possible(client: httpx.Client) -> None:
    error = error_of(client.post("/v1/chat/completions", json={**CHAT, "add_generation_prompt": False}), 400)
    assert "only true is possible" in error["message"]
    error = error_of(client.post("/v1/completions", json={**COMPLETION, "logit_bias": {"1" * 11: 1}}), 400)
    assert "1" * 11 in error["message"]


def test_a_body_that_is_too_long(strict: httpx.Client) -> None:
    """One that says so, and one that does not."""
    error_of(strict.post("/v1/completions", json={**COMPLETION, "prompt": "x" * 10_000}), 413)

    def endless() -> Iterator[bytes]:
        while True:
            yield b" " * 1000

    headers = {"content-type": "application/json"}
    error_of(strict.post("/v1/completions", content=endless(), headers=headers), 413)


def test_a_body_that_does_not_come() -> None:
    app = fake_app(FakeEngine(TOKENS), config=ApiConfig(body_timeout_s=0.05))
    with serving(app) as url, socket.create_connection(("127.0.0.1", urlsplit(url).port)) as caller:
        caller.sendall(f"{POST}content-length: 9\r\n\r\n{{".encode())
        assert caller.recv(12) == b"HTTP/1.1 408"


def test_more_streams_than_are_allowed() -> None:
    engine = FakeEngine(TOKENS, stuck_after=1)
    with client_of(engine, max_streams=1, retry_after_s=7) as client:
        with client.stream("POST", "/v1/completions", json={**COMPLETION, "stream": True}) as first:
            assert first.status_code == 200
            response = client.post("/v1/completions", json=COMPLETION)
            assert error_of(response, 429)["code"] == "rate_limit_exceeded"
            assert response.headers["retry-after"] == "7"
        eventually(lambda: bool(engine.cancelled))
        engine.stuck_after = None
        assert client.post("/v1/completions", json=COMPLETION).status_code == 200


def test_more_prompts_than_may_wait() -> None:
    engine = FakeEngine(TOKENS, waiting=3)
    with client_of(engine, max_waiting=4) as client:
        assert client.post("/v1/completions", json=COMPLETION).status_code == 200
        response = client.post("/v1/completions", json={**COMPLETION, "prompt": ["a", "b"]})
    assert error_of(response, 429) and response.headers["retry-after"] == "1"
    assert len(engine.submitted) == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_mistake_of_the_server_is_not_told(stream: bool) -> None:
    engine = FakeEngine(TOKENS, mistake=ZeroDivisionError("of line 17"))
    with client_of(engine) as client:
        response = client.post(
            "/v1/completions",
            json={**COMPLETION, "prompt": ["a", "b"], "stream": stream},
            headers={"x-request-id": "mine"},
        )
        message = error_of(response, 500)["message"]
        assert message == "The server had an error; its log says which, of request mine"
        assert response.headers["x-request-id"] == "mine" and len(engine.cancelled) == 2
        engine.mistake = None
        assert client.post("/v1/completions", json=COMPLETION).status_code == 200


def test_several_models() -> None:
    engines = [FakeEngine(TOKENS, named("one")), FakeEngine(TOKENS, named("two"))]
    with serving(fake_app(*engines)) as url, httpx.Client(base_url=url) as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["one", "two"]
        assert client.post("/v1/completions", json={**COMPLETION, "model": "two"}).json()["model"] == "two"
        assert error_of(client.post("/v1/completions", json=COMPLETION), 404)["code"] == "model_not_found"
        error_of(client.post("/tokenize", json={"prompt": "x"}), 404)
    assert [len(engine.submitted) for engine in engines] == [0, 1]
    assert all(engine.is_closed for engine in engines)


def test_paths_and_methods_that_there_are_not(client: httpx.Client) -> None:
    assert error_of(client.get("/v1/nothing"), 404)["code"] == "unknown_url"
    assert error_of(client.get("/v1/completions"), 405)["code"] == "method_not_supported"


def test_every_answer_says_whose_it_is(client: httpx.Client) -> None:
    for path in ("/health", "/v1/nothing"):
        given = client.get(path, headers={"x-request-id": "mine-1"})
        assert given.headers["x-request-id"] == "mine-1"
        assert client.get(path, headers={"x-request-id": "a b"}).headers["x-request-id"].startswith("req-")


def test_health_and_metrics(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    assert 'rankforge:num_requests_waiting{model_name="fake"} 0.0' in client.get("/metrics").text


def test_a_template_that_refuses() -> None:
    template = "{{ raise_exception('users only') }}"
    with serving(fake_app(FakeEngine(TOKENS), chat_template=template)) as url:
        response = httpx.post(f"{url}/v1/chat/completions", json=CHAT)
    assert "users only" in error_of(response, 400)["message"]


def test_a_model_without_a_template() -> None:
    with serving(fake_app(FakeEngine(TOKENS), chat_template=None)) as url:
        response = httpx.post(f"{url}/v1/chat/completions", json=CHAT)
    assert "no chat template" in error_of(response, 400)["message"]
