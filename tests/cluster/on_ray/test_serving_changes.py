"""A service that changes while it runs: new models, new settings, no replicas and some again."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from ray import serve
from transformers import AutoTokenizer, LlamaForCausalLM

from builders.errors import UserError
from cluster.catalogue import MODEL
from cluster.deployed import deployed
from cluster.replica import Card
from cluster.serve_port import free_port
from tests.cluster.run_engines import LIMITS, Made, make
from tests.cluster.serve_case import (
    change,
    is_ready,
    replicas,
    service,
    serving,
    wait_for,
)
from tests.cluster.serve_load import MINUTES, damage, put
from tests.cluster.serve_strikes import our_processes
from tests.tiny import save_llama

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("changes"))


@pytest.fixture(scope="module")
def engine(made: Made) -> str:
    return str(made.engine("engine"))


def answer(url: str, model: str, **fields: Any) -> httpx.Response:
    body = {"model": model, "prompt": "the quick", "max_tokens": 4, "temperature": 0, **fields}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=180)


def card(model: str) -> Card:
    found: Card = serve.get_deployment_handle(MODEL, model).card.remote().result(timeout_s=60)
    return found


@contextmanager
def asking(url: str, model: str, answers: list[httpx.Response]) -> Iterator[None]:
    """Request after request, from three threads."""
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            answers.append(answer(url, model, max_tokens=24))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_one_model_changes_and_the_other_does_not_notice(local_ray: None, engine: str) -> None:
    one: Mapping[str, Any] = {"model": engine, "num_blocks": 32}
    with serving({"one": one, "other": {"model": engine, "num_blocks": 32}}) as found:
        before = replicas("one"), replicas("other")
        change(found, {"one": one, "other": {"model": engine, "num_blocks": 48}})
        wait_for(lambda: "other: deploying" in httpx.get(f"{found.url}/ready").text)
        wait_for(lambda: replicas("other") not in ([], before[1]) and is_ready(found))
        assert replicas("one") == before[0]
        change(found, {"one": one})
        wait_for(lambda: answer(found.url, "other").status_code == 404)  # and no request waits for ever
        assert answer(found.url, "one").status_code == 200 and replicas("one") == before[0]


def test_two_replicas_are_renewed_without_a_failed_request(local_ray: None, engine: str) -> None:
    pair: Mapping[str, Any] = {"least": 2, "most": 2}
    answers: list[httpx.Response] = []
    with serving({"pair": {"model": engine, "num_blocks": 32, "replicas": pair}}) as found:
        before = replicas("pair")
        assert len(before) == 2
        with asking(found.url, "pair", answers):
            change(found, {"pair": {"model": engine, "num_blocks": 48, "replicas": pair}})
            wait_for(lambda: len(replicas("pair")) == 2 and not {*before} & {*replicas("pair")})
    assert len(answers) > 3 and {one.status_code for one in answers} == {200}, [
        one.text for one in answers if one.status_code != 200
    ]


def test_another_tokenizer_comes_without_an_answer_of_both(
    local_ray: None, made: Made, tmp_path: Path
) -> None:
    """Every answer is the old model's to the old tokens, or the new one's to the new ones."""
    other, pair = other_words(tmp_path), {"least": 2, "most": 2}
    expected = [text_of(one, "the quick", 24) for one in (made, other)]
    args = {"num_blocks": 32, "replicas": pair}
    answers: list[httpx.Response] = []
    with serving({"pair": {"model": str(made.engine("before")), **args}}) as found:
        before = replicas("pair")
        with asking(found.url, "pair", answers):
            wait_for(lambda: len(answers) > 3)
            change(found, {"pair": {"model": str(other.engine("after")), **args}})
            wait_for(lambda: len(replicas("pair")) == 2 and not {*before} & {*replicas("pair")}, MINUTES)
            count = len(answers)
            wait_for(lambda: len(answers) > count + 6, MINUTES)
    assert {one.status_code for one in answers} == {200}, [one.text for one in answers]
    texts = [one.json()["choices"][0]["text"] for one in answers]
    assert texts[0] == expected[0] != expected[1] == texts[-1] and {*texts} == {*expected}


def other_words(folder: Path) -> Made:
    """Other weights, and the same words under other numbers."""
    found = make(folder)
    ids = {name: getattr(found.model.config, name) for name in ("eos_token_id", "bos_token_id")}
    sizes = {"vocab_size": 410, "num_hidden_layers": 2, "initializer_range": 0.3}
    save_llama(folder / "model", seed=1, **sizes, **ids, pad_token_id=0)
    file = folder / "model" / "tokenizer.json"
    known = json.loads(file.read_text())
    words = known["model"]["vocab"]
    numbers = [*words.values()]
    known["model"]["vocab"] = dict(zip(words, [*numbers[:200], *reversed(numbers[200:])], strict=True))
    file.write_text(json.dumps(known))
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    return replace(found, model=model, tokenizer=tokenizer)


def text_of(made: Made, prompt: str, tokens: int) -> str:
    (found,) = made.generated(made.tokenizer.encode(prompt), max_new_tokens=tokens)
    return made.tokenizer.decode(found, skip_special_tokens=True)


def test_to_no_replica_and_back(local_ray: None, engine: str) -> None:
    rare: Mapping[str, Any] = {"least": 0, "most": 1, "downscale_delay_s": 2.0}
    never = {**rare, "at_start": 0}
    args = {"model": engine, "num_blocks": 32}
    with serving({"rare": {**args, "replicas": rare}, "never": {**args, "replicas": never}}) as found:
        wait_for(lambda: not replicas("rare"))
        assert is_ready(found) and not replicas("never")
        listed = httpx.get(f"{found.url}/v1/models").json()["data"]
        assert [(one["id"], one["max_model_len"]) for one in listed] == [("rare", 64), ("never", None)]
        for model in ("rare", "never"):
            assert answer(found.url, model).json()["usage"]["completion_tokens"] == 4


def test_another_replica_comes_under_load_and_goes(local_ray: None, engine: str) -> None:
    elastic = {"least": 1, "most": 2, "target_ongoing": 1, "upscale_delay_s": 1.0, "downscale_delay_s": 2.0}
    answers: list[httpx.Response] = []
    with serving({"elastic": {"model": engine, "num_blocks": 32, "replicas": elastic}}) as found:
        assert len(replicas("elastic")) == 1
        with asking(found.url, "elastic", answers):
            wait_for(lambda: len(replicas("elastic")) == 2, MINUTES)
        wait_for(lambda: len(replicas("elastic")) == 1, MINUTES)
        answers.append(answer(found.url, "elastic"))
    assert {one.status_code for one in answers} == {200}


def test_an_engine_that_fails_for_good_beside_a_sound_one(local_ray: None, made: Made) -> None:
    """Its requests go on at the other replica, and Serve starts another one for it, once that can be."""
    folder, pair = made.engine("pair", tp_size=2), {"least": 2, "most": 2}
    answers: list[httpx.Response] = []
    with serving({"pair": {"model": str(folder), "num_blocks": 32, "replicas": pair}}) as found:
        before = replicas("pair")
        whole = damage(folder / "rank1.safetensors")
        with asking(found.url, "pair", answers):
            our_processes("RankHost")[0].kill()
            wait_for(lambda: len({*before} & {*replicas("pair")}) == 1, MINUTES)
        put(folder / "rank1.safetensors", whole)
        wait_for(lambda: len(replicas("pair")) == 2 and is_ready(found), MINUTES)
    assert len(answers) > 3 and {one.status_code for one in answers} == {200}, [
        one.text for one in answers if one.status_code != 200
    ]


def test_a_model_is_converted_and_built_before_it_is_served(
    local_ray: None, made: Made, tmp_path: Path
) -> None:
    build = {**LIMITS, "tp_size": 2, "no_compile": True, "tokens_per_block": 8, "dtype": "float32"}
    args = {"model": str(made.folder / "model"), "build": build, "engines_dir": str(tmp_path)}
    with serving({"org--fresh": args}) as found:
        assert [*card("org--fresh").seconds] == [
            "placed",
            "started",
            "converted",
            "built",
            "loaded",
            "first token",
        ]
        assert answer(found.url, "org/fresh").status_code == 200


def test_what_cannot_be_made_is_said_in_a_line(local_ray: None, tmp_path: Path, made: Made) -> None:
    args = {"model": str(made.folder / "model"), "build": {"tp_size": 5}, "engines_dir": str(tmp_path)}
    wanted = service(free_port(), {"odd": args})
    with pytest.raises(UserError, match=r"^odd: --tp_size=5: [^\n]+$"), deployed(wanted, 5.0, sys.stderr):
        pass


def test_who_asks_during_the_drain_is_told_so(local_ray: None, engine: str) -> None:
    """As OpenAI's clients understand it, from the first refusal to the last."""
    said: list[httpx.Response] = []
    over = threading.Event()

    def ask(url: str) -> None:
        while not over.is_set():
            with suppress(httpx.TransportError):  # at the very end
                said.append(answer(url, "one"))

    with serving({"one": {"model": engine, "num_blocks": 32}}) as found:
        asking = threading.Thread(target=ask, args=[found.url])
        asking.start()
        wait_for(lambda: said)
    over.set()
    asking.join()
    refused = [one for one in said if one.status_code != 200]
    assert refused
    for one in refused:
        assert one.status_code == 503 and one.headers["retry-after"] == "1", (one.status_code, one.text)
        assert one.json()["error"]["code"] == "draining"
