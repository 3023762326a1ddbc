"""What the API says of itself, and schemathesis' attempts to catch it lying."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from cluster.access import Access
from cluster.api_config import ApiConfig
from cluster.api_document import document
from tests.actors.test_detokenizer import byte_level
from tests.cluster.api_server import fake_app, serving
from tests.cluster.fake_engine import FakeEngine
from tests.cluster.test_api_access import Keys

TOKENS = tuple(byte_level().encode("the quick brown fox"))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(fake_app(FakeEngine(TOKENS), config=ApiConfig(max_tokens=16))) as url:
        yield url


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A server with keys, and a user's."""
    keys = Keys(tmp_path_factory.mktemp("schema") / "keys.json")
    header, access = keys.add("alice"), Access(keys_file=keys.path)
    config = ApiConfig(max_tokens=16)
    with serving(fake_app(FakeEngine(TOKENS), config=config, access=access)) as url:
        yield url, {"Authorization": header["authorization"]}  # the name by which it is left out again


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
    _check_all(schemathesis.openapi.from_url(f"{url}/openapi.json")[path][method], mode, {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "method"),
    [(path, method) for path, known in document(has_keys=True)["paths"].items() for method in known],
)
def test_every_route_takes_the_key_that_it_says(
    closed: tuple[str, dict[str, str]], path: str, method: str
) -> None:
    """With the key, without it, and with a wrong one."""
    url, header = closed
    declared = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=header)
    _check_all(declared[path][method], GenerationMode.POSITIVE, header)


def _check_all(operation: Any, mode: GenerationMode, headers: dict[str, str]) -> None:
    """All checks but one: a valid body may name a model that there is not, or pass a limit."""
    excluded = [CHECKS.get_one("positive_data_acceptance")]

    @settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(excluded_checks=excluded, timeout=20, headers=headers)

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
