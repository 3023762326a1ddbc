"""Keys, their limits, administrative routes, other pages and names of requests, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from builders.errors import UserError
from cluster.access import Access, bound
from cluster.api_errors import ApiError
from cluster.api_keys import KeyRecord, made, write_keys
from cluster.keyring import Keyring
from tests.cluster.api_server import fake_app, serving
from tests.cluster.fake_engine import FakeEngine
from tests.cluster.test_api_bytes import COMPLETION, TOKENS, error_of, eventually
from tests.cluster.test_key_limits import Clock

ROUTES = [
    ("GET", "/v1/models"), ("GET", "/v1/models/fake"), ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"), ("POST", "/v1/embeddings"), ("POST", "/tokenize"),
    ("POST", "/detokenize"), ("GET", "/ready"), ("GET", "/metrics"), ("GET", "/openapi.json"),
    ("POST", "/admin/drain"), ("DELETE", "/admin/drain"), ("GET", "/v1/nothing"), ("GET", "/"),
    ("GET", "/health/"), ("GET", "//health"), ("GET", "/HEALTH"), ("OPTIONS", "/v1/models"),
]  # fmt: skip


class Keys:
    """A file of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: list[KeyRecord] = []
        write_keys(path, [])

    def add(self, name: str, **limits: Any) -> dict[str, str]:
        """The header that has it."""
        key, record = made(name, **limits)
        self._records.append(record)
        write_keys(self.path, self._records)
        return {"authorization": f"Bearer {key}"}

    def remove(self, name: str) -> None:
        self._records = [record for record in self._records if record.name != name]
        write_keys(self.path, self._records)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys.json")


@contextmanager
def client_of(keys: Keys | None, engine: FakeEngine | None = None, **access: Any) -> Iterator[httpx.Client]:
    given = Access(keys_file=keys.path if keys else None, **access)
    app = fake_app(engine or FakeEngine(TOKENS), access=given)
    with serving(app) as url, httpx.Client(base_url=url) as client:
        yield client


def test_without_a_key_only_health_answers(keys: Keys) -> None:
    keys.add("alice")
    with client_of(keys) as client:
        assert client.get("/health").status_code == 200
        for method, path in ROUTES:
            response = client.request(method, path)
            error = error_of(response, 401)
            assert (error["type"], error["code"]) == ("invalid_request_error", None), path
            assert response.headers["www-authenticate"] == "Bearer" and response.headers["x-request-id"]


def test_wrong_keys(keys: Keys) -> None:
    right = keys.add("alice")["authorization"].removeprefix("Bearer ")
    unknown = "rf-" + "0" * 16 + "-" + "a" * 43
    wrong = [right[:-1], right + "a", right.upper(), right[:-1] + "~", unknown, "é", "x" * 9000]
    with client_of(keys) as client:
        for key in wrong:
            response = client.get("/v1/models", headers={"authorization": f"Bearer {key}".encode()})
            assert error_of(response, 401)["code"] == "invalid_api_key" and key not in response.text
        for header in (right, f"Basic {right}", "Bearer", ""):
            assert error_of(client.get("/v1/models", headers={"authorization": header}), 401)["code"] is None
        twice = [("authorization", f"Bearer {right}"), ("authorization", f"Bearer {right}")]
        assert error_of(client.get("/v1/models", headers=twice), 401)["code"] is None
        assert client.get("/v1/models", headers={"authorization": f"bearer  {right}"}).status_code == 200


def test_users_generate_and_administrators_look_after(keys: Keys) -> None:
    user, admin = keys.add("alice"), keys.add("root", is_admin=True)
    with client_of(keys) as client:
        assert client.post("/v1/completions", json=COMPLETION, headers=user).status_code == 200
        assert client.get("/metrics", headers=admin).status_code == 200
        assert client.get("/ready", headers=user).json() == client.get("/ready", headers=admin).json()
        for headers, path in ((user, "/metrics"), (user, "/admin/drain"), (admin, "/v1/models")):
            assert error_of(client.get(path, headers=headers), 403)["code"] == "insufficient_permissions"
        assert error_of(client.post("/v1/completions", json=COMPLETION, headers=admin), 403)


def test_metrics_may_be_opened(keys: Keys) -> None:
    with client_of(keys, open_metrics=True) as client:
        assert "rankforge:num_requests_running" in client.get("/metrics").text
        error_of(client.get("/ready"), 401)


def test_keys_come_and_go_while_it_serves(keys: Keys) -> None:
    keys.add("alice")
    with client_of(keys) as client:
        bob = keys.add("bob")
        eventually(lambda: client.get("/v1/models", headers=bob).status_code == 200)
        keys.remove("bob")
        eventually(lambda: client.get("/v1/models", headers=bob).status_code == 401)
        bob = keys.add("bob")
        eventually(lambda: client.get("/v1/models", headers=bob).status_code == 200)
        keys.path.write_text("{")
        eventually(lambda: client.get("/v1/models", headers=bob).status_code == 401)
        keys.path.unlink()
        assert error_of(client.get("/v1/models", headers=bob), 401)


def test_what_is_used_stays_used_while_the_file_cannot_be_read(keys: Keys) -> None:
    user = keys.add("alice", requests_per_minute=1)
    clock = Clock()
    ring = Keyring(keys.path, clock)
    ring.find(user["authorization"]).begin()
    whole = keys.path.read_bytes()
    for data in (b"{", b"", whole):
        clock.now_s += 2
        keys.path.write_bytes(data)
        if data != whole:
            with pytest.raises(ApiError):
                ring.find(user["authorization"])
    with pytest.raises(ApiError) as refused:
        ring.find(user["authorization"]).begin()
    assert refused.value.status == 429


def test_a_server_does_not_start_without_its_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rankforge keys add"):
        fake_app(access=Access(keys_file=tmp_path / "none.json"))


def test_requests_a_minute(keys: Keys) -> None:
    few, many = keys.add("few", requests_per_minute=2), keys.add("many")
    with client_of(keys) as client:
        answers = [client.get("/v1/models", headers=few) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        error = error_of(answers[2], 429)
        assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
        assert 0 < int(answers[2].headers["retry-after"]) <= 30
        assert client.get("/v1/models", headers=many).status_code == 200


def test_tokens_a_minute(keys: Keys) -> None:
    """What is not asked for is not known before: it counts afterwards."""
    user = keys.add("alice", tokens_per_minute=100)
    with client_of(keys) as client:

        def ask(**fields: Any) -> httpx.Response:
            return client.post("/v1/completions", json={**COMPLETION, **fields}, headers=user)

        used = ask(max_tokens=50).json()["usage"]["total_tokens"]
        refused = ask(max_tokens=100)
        assert error_of(refused, 429)["type"] == "tokens" and int(refused.headers["retry-after"]) <= 60
        assert ask(max_tokens=100 - used - 5).status_code == 200
        assert error_of(ask(max_tokens=50), 429)


def test_what_is_refused_costs_no_tokens(keys: Keys) -> None:
    user = keys.add("alice", tokens_per_minute=200)
    engine = FakeEngine(TOKENS, refusal="no")
    with client_of(keys, engine) as client:
        for _ in range(5):
            error_of(client.post("/v1/completions", json={**COMPLETION, "max_tokens": 90}, headers=user), 400)
        engine.refusal = None
        answer = client.post("/v1/completions", json={**COMPLETION, "max_tokens": 180}, headers=user)
        assert answer.status_code == 200


def test_requests_at_once(keys: Keys) -> None:
    user, other = keys.add("alice", max_concurrent=1), keys.add("bob")
    engine = FakeEngine(TOKENS, stuck_after=1)
    wish = {**COMPLETION, "stream": True}
    with client_of(keys, engine) as client:
        with client.stream("POST", "/v1/completions", json=wish, headers=user) as first:
            assert first.status_code == 200
            refused = client.get("/v1/models", headers=user)
            assert error_of(refused, 429) and refused.headers["retry-after"] == "1"
            assert client.get("/v1/models", headers=other).status_code == 200
        eventually(lambda: client.get("/v1/models", headers=user).status_code == 200)


def test_other_pages_are_shut_out() -> None:
    with client_of(None) as client:
        for response in (
            client.get("/v1/models", headers={"origin": "https://evil.example"}),
            client.options("/v1/completions", headers=_preflight("https://evil.example")),
        ):
            assert error_of(response, 403)["code"] == "origin_not_allowed"
            assert not any(name.startswith("access-control") for name in response.headers)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1", "", "file://"])
def test_without_keys_no_page_of_another_origin_has_a_text(origin: str) -> None:
    """Browsers send what a page calls JSON in a request of its own without asking first."""
    page, engine = "https://chat.example.com", FakeEngine(TOKENS)
    with client_of(None, engine, only_local=True, cors_origins=(page,)) as client:
        url, here = "/v1/completions", str(client.base_url)
        refused = client.post(url, json=COMPLETION, headers={"origin": origin})
        assert error_of(refused, 403)["code"] == "origin_not_allowed" and not engine.submitted
        for known in (page, page.upper(), here):
            assert client.post(url, json=COMPLETION, headers={"origin": known}).status_code == 200


def _preflight(origin: str) -> dict[str, str]:
    wanted = "authorization,content-type"
    return {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": wanted,
    }


def test_pages_that_are_named_are_let_in(keys: Keys) -> None:
    """Refusals too can be read there."""
    page, user = "https://chat.example.com", keys.add("alice")
    with client_of(keys, cors_origins=(page,)) as client:
        asked = client.options("/v1/completions", headers=_preflight(page))
        assert asked.status_code == 200 and asked.headers["access-control-allow-origin"] == page
        assert "access-control-allow-credentials" not in asked.headers
        answer = client.get("/v1/models", headers={"origin": page, **user})
        assert answer.headers["access-control-allow-origin"] == page and answer.headers["x-request-id"]
        refused = client.get("/v1/models", headers={"origin": page})
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == page
        other = client.get("/v1/models", headers={"origin": "https://evil.example", **user})
        assert "access-control-allow-origin" not in other.headers
        denied = client.options("/v1/completions", headers=_preflight("https://evil.example"))
        assert denied.status_code == 400 and "access-control-allow-origin" not in denied.headers


@pytest.mark.parametrize("origin", ["chat.example.com", "https://a.com/", "null", "https://*.a.com", "*"])
def test_origins_that_are_none(origin: str) -> None:
    with pytest.raises(UserError, match="cors_origins"):
        Access(cors_origins=(origin,))


@pytest.mark.parametrize("separate", [True, False])
def test_whose_prompts_share_the_cache(keys: Keys, separate: bool) -> None:
    users, engine = [keys.add("alice"), keys.add("bob")], FakeEngine(TOKENS)
    with client_of(keys, engine, separate_caches=separate) as client:
        for user in (*users, *users):
            assert client.post("/v1/completions", json=COMPLETION, headers=user).status_code == 200
    alice, bob, *again = [request.namespace for request in engine.submitted]
    assert (alice != bob) == separate and again == [alice, bob]


def test_caches_are_separate_by_key_alone() -> None:
    with pytest.raises(UserError, match="separate_caches"):
        Access(separate_caches=True)


def test_draining(keys: Keys) -> None:
    user, admin = keys.add("alice"), keys.add("root", is_admin=True)
    engine = FakeEngine(TOKENS, stuck_after=1)
    with client_of(keys, engine) as client:
        with client.stream(
            "POST", "/v1/completions", json={**COMPLETION, "stream": True}, headers=user
        ) as first:
            assert first.status_code == 200
            assert client.post("/admin/drain", headers=admin).json() == {"draining": True, "under_way": 1}
            assert error_of(client.get("/ready", headers=user), 503)["code"] == "draining"
            refused = client.post("/v1/completions", json=COMPLETION, headers=user)
            assert error_of(refused, 503)["code"] == "draining" and refused.headers["retry-after"] == "1"
            assert client.get("/v1/models", headers=user).status_code == 200
        engine.stuck_after = None
        assert client.delete("/admin/drain", headers=admin).json()["draining"] is False
        assert client.post("/v1/completions", json=COMPLETION, headers=user).status_code == 200


def test_nobody_drains_a_server_without_keys() -> None:
    with client_of(None) as client:
        assert "keys_file" in error_of(client.post("/admin/drain"), 403)["message"]
        assert client.get("/ready").status_code == 200 and client.get("/metrics").status_code == 200


def test_a_requests_name_is_in_its_errors(keys: Keys) -> None:
    keys.add("alice")
    with client_of(keys) as client:
        given = client.get("/v1/models", headers={"x-request-id": "mine-1"})
        assert given.status_code == 401 and given.headers.get_list("x-request-id") == ["mine-1"]
        for bad in ("a b", "x" * 65, "é", "a\tb", '"', "{}"):
            made_here = client.get("/health", headers={"x-request-id": bad.encode()}).headers["x-request-id"]
            assert made_here.startswith("req-") and len(made_here) == 36


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "::1", "[::1]", "::ffff:127.0.0.1"])
def test_without_keys_it_listens_here(host: str) -> None:
    assert bound(Access(), host).only_local


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "example.com", "localhost.evil.com", "0"])
def test_without_keys_it_listens_nowhere_else(host: str, keys: Keys) -> None:
    with pytest.raises(UserError, match="without API keys a server listens on loopback alone") as refusal:
        bound(Access(), host)
    assert "\n" not in str(refusal.value)
    for access in (bound(Access(), host, insecure=True), bound(Access(keys_file=keys.path), host)):
        assert not access.only_local


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("localhost:8000", 200), ("LOCALHOST:8000", 200), ("127.0.0.1:1", 200),
        ("[::1]:8000", 200), ("::1", 403),
        ("rebound.example:8000", 403), ("localhost.evil.com", 403), ("127.0.0.1.evil.com", 403), ("", 403),
        ("localhost:8000@evil.com", 403), ("0.0.0.0:8000", 403),
    ],
)  # fmt: skip
def test_a_page_that_has_taken_this_machines_address(host: str, status: int) -> None:
    with client_of(None, only_local=True) as client:
        assert client.get("/v1/models", headers={"host": host}).status_code == status
        assert client.get("/health", headers={"host": host}).status_code == status
        assert client.get("/health").status_code == 200


def test_the_openai_package_has_its_errors(keys: Keys) -> None:
    user = keys.add("alice", requests_per_minute=1)["authorization"].removeprefix("Bearer ")
    with client_of(keys) as client:

        def ask(key: str) -> Any:
            base_url = str(client.base_url.join("/v1"))
            with openai.OpenAI(base_url=base_url, api_key=key, max_retries=0) as users:
                return users.completions.create(model="fake", prompt="x", max_tokens=2)

        with pytest.raises(openai.AuthenticationError):
            ask("sk-wrong")
        assert ask(user).choices[0].text
        with pytest.raises(openai.RateLimitError) as refusal:
            ask(user)
    assert json.loads(refusal.value.response.text)["error"]["code"] == "rate_limit_exceeded"
