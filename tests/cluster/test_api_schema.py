"""What the API says of itself, and schemathesis' attempts to catch it lying."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from cluster.api_config import ApiConfig
from cluster.api_document import document
from tests.actors.test_detokenizer import byte_level
from tests.cluster.api_server import fake_app, serving
from tests.cluster.fake_engine import FakeEngine

TOKENS = tuple(byte_level().encode("the quick brown fox"))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(fake_app(FakeEngine(TOKENS), config=ApiConfig(max_tokens=16))) as url:
        yield url


OPERATIONS = [
    (path, method, mode)
    for path, methods in document()["paths"].items()
    for method, operation in methods.items()
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if mode is GenerationMode.POSITIVE or "requestBody" in operation
]
"""Without a body there is nothing to get wrong."""


@pytest.mark.slow
@pytest.mark.parametrize(("path", "method", "mode"), OPERATIONS)
def test_every_answer_is_one_that_is_declared(url: str, path: str, method: str, mode: GenerationMode) -> None:
    """All checks but one: a valid body may name a model that there is not, or pass a limit."""
    operation = schemathesis.openapi.from_url(f"{url}/openapi.json")[path][method]
    excluded = [CHECKS.get_one("positive_data_acceptance")]

    @settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(excluded_checks=excluded, timeout=20)

    check()


def test_answers_are_as_declared(url: str) -> None:
    """The generated bodies rarely name the model: these do."""
    declared = schemathesis.openapi.from_url(f"{url}/openapi.json")
    wishes = {
        "/v1/completions": {"model": "fake", "prompt": "x", "logprobs": 2, "echo": True, "n": 2},
        "/v1/chat/completions": {
            "model": "fake",
            "messages": [{"role": "user", "content": "x"}],
            "logprobs": True,
            "top_logprobs": 2,
        },
        "/tokenize": {"prompt": "x"},
        "/detokenize": {"tokens": [40]},
    }
    for path, body in wishes.items():
        response = httpx.post(f"{url}{path}", json=body)
        assert response.status_code == 200, response.text
        declared[path]["POST"].validate_response(response)
