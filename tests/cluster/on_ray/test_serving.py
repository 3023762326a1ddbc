"""Models behind a real Ray Serve, as OpenAI's client sees them: two on one cluster, one of two ranks."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from ray import serve

from cluster.catalogue import MODEL
from cluster.engine_client import EngineLoad
from cluster.serve_config import application_name
from cluster.serve_plan import Service
from tests.cluster.api_server import TEMPLATE
from tests.cluster.run_engines import Made, make
from tests.cluster.serve_case import is_ready, processes, serving, wait_for

SHORT = TEMPLATE.replace("{{ tools | tojson }}", "T")
"""A prompt of few tokens, whatever tools there are."""
GREEDY: Any = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="module")
def service(made: Made, local_ray: None) -> Iterator[Service]:
    models = {
        "two--ranks": {
            "model": str(made.engine("tp2", tp_size=2, max_seq_len=512)),
            "chat_template": SHORT,
            "tool_format": "hermes",
        },
        "one": {"model": str(made.engine("one")), "num_blocks": 64},
    }
    with serving(models) as found:
        yield found


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def expected(made: Made, prompt: str) -> str:
    (found,) = made.generated(made.tokenizer.encode(prompt), max_new_tokens=12)
    return made.tokenizer.decode(found, skip_special_tokens=True)


@pytest.mark.parametrize("model", ["two/ranks", "one"])
def test_a_stream_is_what_transformers_says(client: openai.OpenAI, made: Made, model: str) -> None:
    parts = client.completions.create(model=model, prompt="the quick", stream=True, **GREEDY)
    assert "".join(part.choices[0].text for part in parts) == expected(made, "the quick")


def test_many_at_once(client: openai.OpenAI, made: Made) -> None:
    prompts = ["the quick", "brown", "jumps over the"]
    answer = client.completions.create(model="two/ranks", prompt=prompts, **GREEDY)
    assert [choice.text for choice in answer.choices] == [expected(made, prompt) for prompt in prompts]
    assert answer.usage and answer.usage.prompt_tokens == sum(
        len(made.tokenizer.encode(prompt)) for prompt in prompts
    )


def test_a_chat_with_a_template_of_the_configuration(client: openai.OpenAI, made: Made) -> None:
    messages: Any = [{"role": "user", "content": "hi"}]
    answer = client.chat.completions.create(model="two/ranks", messages=messages, **GREEDY)
    rendered = "<|turn|>user: hi\n<|turn|>assistant: "
    assert answer.choices[0].message.content == expected(made, rendered)
    with pytest.raises(openai.BadRequestError, match="has no chat template"):
        client.chat.completions.create(model="one", messages=messages, **GREEDY)


def test_calls_of_tools_are_found_in_the_format_of_the_configuration(client: openai.OpenAI) -> None:
    parameters = {"type": "object", "properties": {}, "additionalProperties": False}
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    wish: Any = {"messages": [{"role": "user", "content": "hi"}], "tools": tools, "tool_choice": "required"}
    answer = client.chat.completions.create(
        model="two/ranks", temperature=0, parallel_tool_calls=False, **wish
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert (call.type, call.function.name, call.function.arguments) == ("function", "f", "{}")
    with pytest.raises(openai.BadRequestError, match="tool"):
        client.chat.completions.create(model="one", **wish)


def test_models_are_listed_and_ready(client: openai.OpenAI, service: Service) -> None:
    assert sorted(model.id for model in client.models.list()) == ["one", "two/ranks"]
    assert is_ready(service)


def test_what_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.completions.create(model="three", prompt="x")
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.completions.create(model="one", prompt="x", max_tokens=1000)


def test_a_stop_string_ends_the_engines_work(client: openai.OpenAI, made: Made) -> None:
    text = expected(made, "the quick")
    stop = text[2:4]
    answer = client.completions.create(model="one", prompt="the quick", stop=stop, **GREEDY)
    assert answer.choices[0].text == text[: text.index(stop)] and answer.choices[0].finish_reason == "stop"
    wait_for(lambda: load("one") == EngineLoad())


def test_who_leaves_frees_the_engine(client: openai.OpenAI) -> None:
    parts = client.completions.create(
        model="two/ranks", prompt="the", stream=True, max_tokens=55, n=4, extra_body={"ignore_eos": True}
    )
    next(iter(parts))
    parts.close()
    wait_for(lambda: load("two/ranks") == EngineLoad())


def test_ids_of_requests_come_back(service: Service) -> None:
    given = httpx.get(f"{service.url}/v1/models", headers={"x-request-id": "my-own"})
    assert given.headers["x-request-id"] == "my-own"


def test_the_start_is_shown_by_phase(client: openai.OpenAI) -> None:
    card = serve.get_deployment_handle(MODEL, "two--ranks").card.remote().result(timeout_s=30)
    assert [*card.seconds] == ["placed", "started", "loaded", "first token"]


def load(model: str) -> EngineLoad:
    """What the engine itself says."""
    found: EngineLoad = (
        serve.get_deployment_handle(MODEL, application_name(model)).load.remote().result(timeout_s=30)
    )
    return found


def test_a_replica_that_is_killed_costs_nobody_a_request(client: openai.OpenAI, service: Service) -> None:
    """Another one goes on from the tokens that its callers have."""
    wish: Any = {"model": "one", "prompt": ["the quick", "brown"] * 16, "temperature": 0, "max_tokens": 50}

    def texts(*, is_killed: bool) -> tuple[list[str], int]:
        found, late = [""] * len(wish["prompt"]), 0
        for part in client.completions.create(stream=True, extra_body={"ignore_eos": True}, **wish):
            if is_killed and not late:
                os.kill(before, signal.SIGKILL)
                wait_for(lambda: cause in httpx.get(f"{service.url}/ready").text)
            late += 1
            for choice in part.choices:
                found[choice.index] += choice.text
        return found, late

    (before,) = processes("one")
    cause = f"(pid {before}): its process died"
    undisturbed, _ = texts(is_killed=False)
    disturbed, parts = texts(is_killed=True)
    assert disturbed == undisturbed and parts > len(disturbed)
    wait_for(lambda: processes("one") not in ([], [before]) and is_ready(service))
