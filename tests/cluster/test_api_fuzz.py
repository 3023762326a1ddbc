"""Whatever comes, the server answers it as the caller's mistake; and nothing that comes is opened or run."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.access import Access
from cluster.api_config import ApiConfig
from cluster.api_requests import REFUSED, ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from tests.cluster.api_server import fake_app, serving
from tests.cluster.fake_engine import FakeEngine
from tests.cluster.test_api_access import Keys
from tests.cluster.test_api_bytes import TOKENS

BODIES = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
}
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "fake",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}], "name": "n"}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "max_tokens": 2,
    },
    "/v1/completions": {"model": "fake", "prompt": ["x"], "max_tokens": 2, "stop": ["s"], "user": "u"},
    "/tokenize": {"model": "fake", "prompt": "x"},
    "/detokenize": {"model": "fake", "tokens": [40]},
}
PATHS = st.sampled_from(sorted(BODIES))
often = settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["fake", "text", "user", "function", "json_object", "x" * 5000])
)
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    config = ApiConfig(max_tokens=8, max_prompts=4, max_body_bytes=100_000)
    with (
        serving(fake_app(FakeEngine(TOKENS), config=config)) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        yield client


def check(response: httpx.Response) -> None:
    """An answer, or what is wrong in OpenAI's shape."""
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert len(response.headers.get_list("x-request-id")) == 1


@often
@given(PATHS, st.binary(max_size=300))
def test_bytes(client: httpx.Client, path: str, data: bytes) -> None:
    check(client.post(path, content=data, headers={"content-type": "application/json"}))


@often
@given(PATHS, anything)
def test_json(client: httpx.Client, path: str, body: Any) -> None:
    data = json.dumps(body).encode(errors="surrogatepass")
    check(client.post(path, content=data, headers={"content-type": "application/json"}))


@often
@given(st.data())
def test_fields(client: httpx.Client, data: st.DataObject) -> None:
    """Bodies that are right but for a few fields, which may be anything."""
    path = data.draw(PATHS)
    names = st.sampled_from([*BODIES[path].__struct_fields__, *REFUSED]) | st.text(max_size=6)
    wrong = data.draw(st.dictionaries(names, anything, max_size=3))
    body = json.dumps({**VALID[path], **wrong}).encode(errors="surrogatepass")
    check(client.post(path, content=body, headers={"content-type": "application/json"}))


NAMES = st.sampled_from(
    [
        b"authorization", b"x-request-id", b"content-type", b"content-length", b"origin", b"host", b"accept",
        b"transfer-encoding", b"connection", b"expect", b"upgrade", b"access-control-request-method",
    ]
)  # fmt: skip
VALUES = st.binary(max_size=40) | st.sampled_from([b"application/json", b"chunked", b"-1", b"1e9", b"\xff"])
METHODS = st.sampled_from([b"GET", b"POST", b"OPTIONS", b"DELETE", b"BREW"])
TARGETS = st.sampled_from([b"/v1/completions", b"/v1/models/x", b"/ready", b"/metrics", b"*"])


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    keys = Keys(tmp_path_factory.mktemp("fuzz") / "keys.json")
    header = keys.add("alice")
    config = ApiConfig(body_timeout_s=0.05, max_tokens=4)
    access = Access(keys_file=keys.path, cors_origins=("https://a.example",))
    with serving(fake_app(FakeEngine(TOKENS), config=config, access=access), log_level="critical") as url:
        yield url, header


@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(
    METHODS, TARGETS, st.lists(st.tuples(NAMES, VALUES), max_size=4), st.booleans(), st.binary(max_size=60)
)
def test_heads(
    guarded: tuple[str, dict[str, str]],
    method: bytes,
    target: bytes,
    headers: list[tuple[bytes, bytes]],
    has_key: bool,
    body: bytes,
) -> None:
    """As bytes on a socket: what is no HTTP ends with the connection, what is gets an answer below 500."""
    url, key = guarded
    given = [*headers, *((name.encode(), value.encode()) for name, value in key.items() if has_key)]
    lines = [b"%b %b HTTP/1.1" % (method, target), b"connection: close", *(b"%b: %b" % one for one in given)]
    with socket.create_connection(("127.0.0.1", urlsplit(url).port), timeout=30) as caller:
        caller.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        caller.shutdown(socket.SHUT_WR)
        answer = b""
        while part := caller.recv(65536):
            answer += part
    status = answer[9:12]
    assert not status or status < b"500", answer
    knows = any(name == b"authorization" for name, _ in headers)
    assert status != b"200" or (has_key and not knows) or method == b"OPTIONS", "nobody else is let in"
    assert httpx.get(f"{url}/v1/models", headers=key).status_code == 200


MARK = "canary7f3a"
EVIL = st.sampled_from(
    [
        f"../../{MARK}", f"/etc/{MARK}", f"~/{MARK}", f"file:///{MARK}", f"http://{MARK}.invalid/x",
        f"s3://{MARK}/x", f"\\\\{MARK}\\x", f"{MARK}\x00.json", f"hf://{MARK}", f"data:text/plain,{MARK}",
        f"{{% include '{MARK}' %}}", f"{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}{MARK}",
        f"$(cat {MARK})", f"__import__('{MARK}')", f"%2e%2e/{MARK}",
    ]
)  # fmt: skip
FIELDS = [
    "model", "prompt", "messages", "tools", "response_format", "chat_template", "tokenizer", "adapter",
    "user", "metadata", "stop", "image_url", "file", "suffix", "guided_grammar", "chat_template_kwargs",
    "mm_processor_kwargs", "documents", "add_generation_prompt", "structured_outputs", "service_tier", "lora",
]  # fmt: skip
SHAPES = st.sampled_from(
    [
        lambda evil: evil,
        lambda evil: [evil],
        lambda evil: {"url": evil, "path": evil},
        lambda evil: {"type": "json_schema", "json_schema": {"schema": {"$ref": evil}}},
        lambda evil: [{"role": "user", "content": evil, "name": evil}],
        lambda evil: [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": evil}}]}],
        lambda evil: [{"role": "user", "content": [{"type": "input_audio", "text": evil, "file": evil}]}],
        lambda evil: [{"type": "function", "function": {"name": evil, "parameters": {"$ref": evil}}}],
    ]
)
WATCHED = (
    "open",
    "import",
    "exec",
    "compile",
    "os.",
    "subprocess.",
    "socket.",
    "urllib.",
    "glob.",
    "shutil.",
)


class Touched:
    """What Python's own audit says that other threads than the test's reach for."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self._mine = threading.get_ident()
        self.is_on = False
        sys.addaudithook(self._hear)  # there is no way to take it back: it is switched off

    def _hear(self, event: str, values: tuple[Any, ...]) -> None:
        if self.is_on and threading.get_ident() != self._mine and event.startswith(WATCHED):
            self.events.append(f"{event} {values!r}")

    def by_callers(self) -> list[str]:
        """What names something of theirs, and every way out."""
        outward = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.", "os.system")
        return [one for one in self.events if MARK in one or one.startswith(outward)]


@pytest.fixture(scope="module")
def touched() -> Iterator[Touched]:
    found = Touched()
    found.is_on = True
    yield found
    found.is_on = False


def test_what_is_touched_is_seen(touched: Touched) -> None:
    def reach() -> None:
        with pytest.raises(FileNotFoundError):
            open(f"/nowhere/{MARK}")  # noqa: SIM115
        with pytest.raises(ModuleNotFoundError):
            __import__(MARK)
        with socket.socket() as caller, pytest.raises(ConnectionRefusedError):
            caller.connect(("127.0.0.1", 1))

    thread = threading.Thread(target=reach)
    thread.start()
    thread.join()
    assert [one.split(" ")[0] for one in touched.by_callers()][:3] == ["open", "import", "socket.connect"]
    touched.events.clear()


@often
@given(PATHS, st.sampled_from(FIELDS), EVIL, SHAPES)
def test_no_path_no_address_and_no_code_is_followed(
    client: httpx.Client, touched: Touched, path: str, field: str, evil: str, shape: Any
) -> None:
    client.get("/ready")
    touched.events.clear()
    check(client.post(path, json={**VALID[path], field: shape(evil)}))
    check(client.get(f"/v1/models/{quote(evil)}", headers={"x-request-id": evil.encode().hex()[:200]}))
    assert touched.by_callers() == []
