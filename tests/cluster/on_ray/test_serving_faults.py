"""Everything that serving consists of is killed under load: no wrong text, no clean end of half a text.

Two models on one cluster, behind two processes of the API: what strikes one model does not touch the other.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from ray.cluster_utils import Cluster

from cluster.serve_plan import Service
from tests.cluster.run_engines import Made, make
from tests.cluster.serve_case import replicas, serving, wait_for
from tests.cluster.serve_load import (
    MINUTES,
    Caller,
    calling,
    damage,
    our_processes,
    put,
    ready_again,
    unready,
)
from tests.disks import Disk, small_disk

pytestmark = pytest.mark.long

PROMPTS = ["once upon a time", "there was", "a rank", "which did not answer", "any more"]
TOKENS = 160
NUM_BLOCKS = 56
"""Less than three of the texts take: the cache is full, and they send each other back to wait."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def undisturbed(made: Made) -> dict[str, str]:
    """What Transformers says."""
    texts = {}
    for prompt in PROMPTS:
        (found,) = made.generated(made.tokenizer.encode(prompt), end=-1, max_new_tokens=TOKENS)
        texts[prompt] = made.tokenizer.decode(found, skip_special_tokens=True)
    return texts


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    with small_disk(tmp_path_factory.mktemp("disk"), "64m") as found:
        yield found


@pytest.fixture(scope="module")
def folder(made: Made, disk: Disk) -> Path:
    """The engine of two ranks, on a file system of its own."""
    return Path(shutil.move(made.engine("tp2", tp_size=2, max_seq_len=256), disk.here / "tp2"))


@pytest.fixture(scope="module")
def service(made: Made, folder: Path, local_ray: None) -> Iterator[Service]:
    models: dict[str, dict[str, Any]] = {
        "struck": {"model": str(folder), "num_blocks": NUM_BLOCKS},
        "other": {"model": str(made.engine("one", max_seq_len=256)), "prompt_lookup_num_tokens": 3},
    }
    with serving(models, replicas=2) as found:
        yield found


def callers(service: Service, model: str) -> list[Caller]:
    return [Caller(service.url, model, prompt, TOKENS) for prompt in PROMPTS]


def rank_processes() -> list[psutil.Process]:
    """Those that are actors: one, as the other rank of two is in the replica."""
    return our_processes("RankHost")


def strike_rank(number: signal.Signals) -> Callable[[], None]:
    return lambda: [os.kill(one.pid, number) for one in rank_processes()] and None


RANKS = [
    (strike_rank(signal.SIGKILL), "its process died"),
    (strike_rank(signal.SIGSTOP), "no sign of life for "),
]


@pytest.mark.parametrize(("strike", "cause"), RANKS, ids=["killed", "stopped"])
def test_a_rank(
    strike: Callable[[], None],
    cause: str,
    service: Service,
    undisturbed: dict[str, str],
    local_ray: Cluster,
) -> None:
    """Its model pauses, and both processes of the API say so; the other model does not notice."""
    ready_again(service)
    before, (pid,) = replicas("other"), [one.pid for one in rank_processes()]
    mine, others = callers(service, "struck"), callers(service, "other")
    with calling([*mine, *others]):
        strike()
        since = time.monotonic()
        said = unready(service)
        ready_again(service)
        print(f"{cause}: ready again after {time.monotonic() - since:.1f} s")
    assert f"(pid {pid}): " in said and cause in said, said
    for one in [*mine, *others]:
        assert one.is_whole and one.text == undisturbed[one.prompt], one
    assert replicas("other") == before
    log = said_by(local_ray, "struck")
    assert f"(pid {pid}): {cause}" in log and "its ranks are ready again after " in log


def said_by(cluster: Cluster, model: str) -> str:
    """Its replicas' logs."""
    folder = Path(cluster.head_node.get_session_dir_path()) / "logs" / "serve"
    wait_for(lambda: [*folder.glob(f"replica_{model}_*.log")])
    return "".join(file.read_text() for file in folder.glob(f"replica_{model}_*.log"))


def answered_again(service: Service, undisturbed: dict[str, str], asked: list[str]) -> None:
    """As OpenAI's client asks: again, where there was no answer."""
    since = time.monotonic()
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=60) as client:
        extra = {"ignore_eos": True}
        for model in ("struck", "other"):
            answer = client.completions.create(
                model=model, prompt=PROMPTS[0], temperature=0, max_tokens=TOKENS, extra_body=extra
            )
            assert answer.choices[0].text == undisturbed[PROMPTS[0]]
            asked.append(model)
    print(f"both models have answered after {time.monotonic() - since:.1f} s")


def api_ports() -> list[int]:
    """Of the API's processes, each with one of its own."""
    found = [one.net_connections("tcp") for one in our_processes("ServeReplica:api")]
    return [
        one.laddr.port for all_of in found for one in all_of
        if one.status == psutil.CONN_LISTEN and 30000 <= one.laddr.port <= 31000
    ]  # fmt: skip


def generated(port: int) -> float:
    lines = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text.splitlines()
    name = 'rankforge:generation_tokens_total{model_name="other"}'
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_each_process_of_the_api_counts_what_came_through_it(service: Service) -> None:
    ready_again(service)
    ports = api_ports()
    before = sum(map(generated, ports))
    with calling(callers(service, "other")):
        pass
    assert len(ports) == 2 and sum(map(generated, ports)) == before + TOKENS * len(PROMPTS)


@pytest.mark.parametrize("title", ["ServeReplica:api", "haproxy", "HAProxyManager"])
def test_a_process_that_holds_connections(title: str, service: Service, undisturbed: dict[str, str]) -> None:
    """What it was answering breaks, and looks broken; who asks again gets an answer."""
    ready_again(service)
    before = replicas("struck"), replicas("other")
    mine, asked = callers(service, "struck"), list[str]()
    with calling(mine):
        our_processes(title)[0].kill()
        answered_again(service, undisturbed, asked)
    for one in mine:
        if one.is_whole:
            assert one.text == undisturbed[one.prompt]
        else:
            assert not one.is_done and one.finish is None and undisturbed[one.prompt].startswith(one.text)
    assert asked == ["struck", "other"] and (replicas("struck"), replicas("other")) == before


def test_the_controller(service: Service, undisturbed: dict[str, str]) -> None:
    """Nobody notices: what is there goes on without it, and it comes back."""
    ready_again(service)
    (controller,) = our_processes("ServeController")
    mine = [*callers(service, "struck"), *callers(service, "other")]
    with calling(mine):
        controller.kill()
        answered_again(service, undisturbed, [])
    for one in mine:
        assert one.is_whole and one.text == undisturbed[one.prompt], one
    wait_for(lambda: our_processes("ServeController") not in ([], [controller]), MINUTES)
    ready_again(service)


def test_an_engine_on_a_file_system_that_turns_read_only(
    service: Service, disk: Disk, undisturbed: dict[str, str]
) -> None:
    """Nothing is written to it: ranks start again from it as they did."""
    ready_again(service)
    assert disk.run("mount", "-o", "remount,ro", disk.folder).returncode == 0
    try:
        with pytest.raises(OSError, match="Read-only"):
            (disk.here / "more").touch()
        mine = callers(service, "struck")
        with calling(mine):
            strike_rank(signal.SIGKILL)()
    finally:
        assert disk.run("mount", "-o", "remount,rw", disk.folder).returncode == 0
    assert [one.text for one in mine if one.is_whole] == [undisturbed[prompt] for prompt in PROMPTS]


def test_the_cache_was_full(service: Service) -> None:
    """All the while, of the model that was struck."""

    def preempted() -> float:
        lines = httpx.get(f"{service.url}/metrics", timeout=30).text.splitlines()
        found = (line for line in lines if "preemptions_total" in line and 'model_name="struck"' in line)
        return sum(float(line.split()[-1]) for line in found)

    with calling(callers(service, "struck")):
        pass
    wait_for(lambda: preempted() > 0, MINUTES)


def test_a_damaged_engine(service: Service, folder: Path, undisturbed: dict[str, str]) -> None:
    """Callers and /ready are told the first cause and the file; the other model answers; it can be mended."""
    ready_again(service)
    file = folder / "rank1.safetensors"
    mine, others = callers(service, "struck"), callers(service, "other")
    whole = damage(file)
    try:
        with calling([*mine, *others]):
            (rank,) = rank_processes()
            rank.kill()
            said = unready(service)
            assert f"(pid {rank.pid}): its process died" in said
        for one in mine:
            assert (one.error and not one.is_done) or one.text == undisturbed[one.prompt], one
        errors = [one.error for one in mine if one.error]
        assert errors and all("its process died" in error and file.name in error for error in errors), errors
        assert all(one.is_whole and one.text == undisturbed[one.prompt] for one in others)
    finally:
        put(file, whole)
    print(f"a damaged engine: ready again after {ready_again(service):.1f} s from its repair")
    answered_again(service, undisturbed, [])
