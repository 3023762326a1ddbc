"""Everything that serving consists of is killed under load: no wrong text, no clean end of half a text.

One service of two models on one cluster, behind two processes of the API: what strikes one model does not
touch the other. What breaks connections comes last, so that what does not finds none that break.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from ray.cluster_utils import Cluster

from cluster.serve_plan import Service
from tests.cluster.run_engines import Made, make
from tests.cluster.serve_case import change, processes, replicas, serving, wait_for
from tests.cluster.serve_load import (
    MINUTES,
    PLAIN,
    Caller,
    calling,
    damage,
    put,
    ready_again,
    statuses,
    unready,
)
from tests.cluster.serve_strikes import (
    killed_rank,
    killed_replica,
    our_processes,
    raising_rank,
    rank_processes,
    stopped_rank,
)
from tests.disks import Disk, small_disk

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * MINUTES)]

PROMPTS = ["once upon a time", "a rank", "which did not answer", "any more"]
TOKENS = 96
NUM_BLOCKS = 34
"""Less than three of the texts take: the cache is full, and they send each other back to wait."""

Models = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def undisturbed(made: Made) -> dict[str, str]:
    return made.texts(PROMPTS, TOKENS)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    with small_disk(tmp_path_factory.mktemp("disk"), "64m") as found:
        yield found


@pytest.fixture(scope="module")
def folder(made: Made, disk: Disk) -> Path:
    """The engine of two ranks, on a file system of its own."""
    return Path(shutil.move(made.engine("tp2", tp_size=2, max_seq_len=256), disk.here / "tp2"))


@pytest.fixture(scope="module")
def models(made: Made, folder: Path) -> Models:
    return {
        "struck": {"model": str(folder), "num_blocks": NUM_BLOCKS},
        "other": {"model": str(made.engine("one", max_seq_len=256)), "prompt_lookup_num_tokens": 3},
    }


@pytest.fixture(scope="module")
def service(models: Models, local_ray: Cluster) -> Iterator[Service]:
    with serving(models, replicas=2) as found:
        yield found


def callers(service: Service, model: str) -> list[Caller]:
    return [Caller(service.url, model, prompt, TOKENS) for prompt in PROMPTS]


def check_whole(found: Sequence[Caller], undisturbed: dict[str, str]) -> None:
    for caller in found:
        for answer in caller.answers:
            assert answer.is_whole and answer.text == undisturbed[caller.prompt], answer


RANKS = [
    (killed_rank, "its process died"),
    (raising_rank, "DecodeError: "),
    (stopped_rank, "no sign of life for "),
]


@pytest.mark.parametrize(("strike", "cause"), RANKS, ids=["killed", "raises", "stopped"])
def test_a_rank(
    strike: Callable[[], None],
    cause: str,
    service: Service,
    undisturbed: dict[str, str],
    local_ray: Cluster,
) -> None:
    """Its model pauses, and both processes of the API say so; the other model does not notice."""
    ready_again(service)
    before, (rank,) = (replicas("struck"), replicas("other")), rank_processes()
    mine, others = callers(service, "struck"), callers(service, "other")
    first = f"(pid {rank.pid}): {cause}"
    with calling(mine, others):
        strike()
        unready(service, f"rank 1 on node {local_ray.head_node.node_ip_address} {first}")
        print(f"{cause}: ready again after {ready_again(service):.1f} s")
    check_whole([*mine, *others], undisturbed)
    assert (replicas("struck"), replicas("other")) == before
    wait_for(lambda: first in (log := said_by(local_ray, "struck")) and "ranks are ready again" in log)


def said_by(cluster: Cluster, model: str) -> str:
    """Its replicas' logs."""
    folder = Path(cluster.head_node.get_session_dir_path()) / "logs" / "serve"
    return "".join(file.read_text() for file in folder.glob(f"replica_{model}_*.log"))


def api_ports() -> list[int]:
    """Of the API's processes, each with one of its own."""
    found = [one.net_connections("tcp") for one in our_processes("ServeReplica:api")]
    return [
        one.laddr.port
        for connections in found
        for one in connections
        if one.status == psutil.CONN_LISTEN and 30000 <= one.laddr.port <= 31000
    ]


def generated(port: int) -> float:
    lines = httpx.get(f"http://127.0.0.1:{port}/metrics", **PLAIN).text.splitlines()
    name = 'rankforge:generation_tokens_total{model_name="other"}'
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_each_process_of_the_api_counts_what_came_through_it(service: Service) -> None:
    ready_again(service)
    ports = api_ports()
    before = sum(map(generated, ports))
    for one in callers(service, "other"):
        one.ask()
    assert len(ports) == 2 and sum(map(generated, ports)) == before + TOKENS * len(PROMPTS)


def test_the_cache_was_full(service: Service, undisturbed: dict[str, str]) -> None:
    """All the while, of the model that is struck."""

    def preempted() -> float:
        lines = httpx.get(f"{service.url}/metrics", **PLAIN).text.splitlines()
        found = (line for line in lines if "preemptions_total" in line and 'model_name="struck"' in line)
        return sum(float(line.split()[-1]) for line in found)

    mine = callers(service, "struck")
    with calling(mine):
        wait_for(lambda: preempted() > 0, MINUTES)
    check_whole(mine, undisturbed)


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
            killed_rank()
            unready(service, "its process died")
            ready_again(service)
    finally:
        assert disk.run("mount", "-o", "remount,rw", disk.folder).returncode == 0
    check_whole(mine, undisturbed)


def test_a_replica(service: Service, undisturbed: dict[str, str]) -> None:
    """Serve starts another one, which goes on from the tokens that callers have."""
    ready_again(service)
    before = replicas("struck"), replicas("other")
    mine, others = callers(service, "struck"), callers(service, "other")
    with calling(mine, others):
        killed_replica("struck")
        unready(service, "struck: ")
        print(f"a replica: ready again after {ready_again(service):.1f} s")
    check_whole([*mine, *others], undisturbed)
    assert replicas("struck") not in ([], before[0]) and replicas("other") == before[1]


@pytest.fixture
def far(service: Service, models: Models, local_ray: Cluster) -> Iterator[str]:
    """One model more, for which only two nodes have room: it is on one of them, and nothing else."""
    wanted = {"model": models["other"]["model"], "cpus_per_rank": 10.0}
    nodes = [local_ray.add_node(num_cpus=12, object_store_memory=80 << 20) for _ in range(2)]
    try:
        change(service, {**models, "far": wanted}, replicas=2)
        wait_for(lambda: replicas("far"), MINUTES)
        yield "far"
    finally:
        change(service, models, replicas=2)
        wait_for(lambda: not processes("far"), MINUTES)
        for node in nodes:
            local_ray.remove_node(node, allow_graceful=False)


def test_a_node(far: str, service: Service, undisturbed: dict[str, str]) -> None:
    """Its raylet is killed; the other node comes to hold the model."""
    ready_again(service)
    before, (pid,) = (replicas("struck"), replicas("other")), processes(far)
    mine, others = callers(service, far), callers(service, "struck")
    with calling(mine, others):
        raylet = psutil.Process(pid).parent()
        assert raylet and "raylet" in raylet.name()
        raylet.kill()
        since = time.monotonic()
        unready(service, f"{far}: ")
        wait_for(lambda: processes(far) not in ([], [pid]), MINUTES)
        ready_again(service)
        print(f"a node: ready again after {time.monotonic() - since:.1f} s")
    check_whole([*mine, *others], undisturbed)
    assert (replicas("struck"), replicas("other")) == before


def test_a_damaged_engine(service: Service, folder: Path, undisturbed: dict[str, str]) -> None:
    """Callers and /ready are told the first cause and the file, also when Serve has tried to start another
    replica in vain; the other model answers; mending the file is enough."""
    ready_again(service)
    file, (rank,) = folder / "rank1.safetensors", rank_processes()
    mine, others = callers(service, "struck"), callers(service, "other")
    why = f"(pid {rank.pid}): its process died", file.name
    whole = damage(file)
    try:
        with calling(mine, others):
            rank.kill()
            unready(service, *why)
        for answer in (caller.answers[-1] for caller in mine):
            assert not answer.looks_whole and all(words in str(answer.error) for words in why), answer
        check_whole(others, undisturbed)
        wait_for(lambda: not replicas("struck"), MINUTES)
        answer = Caller(service.url, "struck", PROMPTS[0], TOKENS).ask()  # waits until there is no hope
        assert answer.status == 503 and all(words in str(answer.error) for words in why), answer
        unready(service, *why)
    finally:
        put(file, whole)
    print(f"a damaged engine: ready again after {ready_again(service):.1f} s from its repair")
    asked_again(service, undisturbed)


def asked_again(service: Service, undisturbed: dict[str, str]) -> None:
    """As OpenAI's client asks: again, where there was no answer."""
    since = time.monotonic()
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=60) as client:
        for model in ("struck", "other"):
            answer = client.completions.create(
                model=model,
                prompt=PROMPTS[0],
                temperature=0,
                max_tokens=TOKENS,
                extra_body={"ignore_eos": True},
            )
            assert answer.choices[0].text == undisturbed[PROMPTS[0]]
    print(f"both models have answered after {time.monotonic() - since:.1f} s")


def test_the_controller(service: Service, undisturbed: dict[str, str]) -> None:
    """Nobody notices: what is there goes on without it, and it comes back."""
    ready_again(service)
    (controller,) = our_processes("ServeController")
    mine, others = callers(service, "struck"), callers(service, "other")
    with calling(mine, others):
        controller.kill()
        asked_again(service, undisturbed)
        wait_for(lambda: our_processes("ServeController") not in ([], [controller]), MINUTES)
    check_whole([*mine, *others], undisturbed)


def killed_ingress() -> None:
    our_processes("ServeReplica:api")[0].kill()


def killed_proxy() -> None:
    for one in our_processes("haproxy"):
        one.kill()


def killed_manager() -> None:
    our_processes("HAProxyManager")[0].kill()


@pytest.mark.parametrize("strike", [killed_ingress, killed_proxy, killed_manager])
def test_what_holds_connections(
    strike: Callable[[], None], service: Service, undisturbed: dict[str, str]
) -> None:
    """What it was answering breaks, and looks broken; who asks again gets an answer."""
    ready_again(service)
    before = replicas("struck"), replicas("other")
    mine = callers(service, "struck")
    with statuses(service) as found, calling(mine):
        strike()
        asked_again(service, undisturbed)
    assert all(status == 200 or status >= 500 for status in found), "what clients ask again after"
    for caller in mine:
        for answer in caller.answers:
            expected = undisturbed[caller.prompt]
            assert answer.text == expected if answer.looks_whole else expected.startswith(answer.text), answer
    assert (replicas("struck"), replicas("other")) == before
