"""NCCL and symmetric memory between real processes, one device each; needs two GPUs, and no Ray."""

from __future__ import annotations

import os
import signal
import threading
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from actors.communicators.links import Kind, open_peers
from actors.communicators.peers import Peers
from actors.communicators.rendezvous import Rendezvous
from actors.communicators.symmetric import BUFFER_BYTES, ENVIRONMENT, ONE_SHOT_BYTES
from tests.actors.communicators.checks import differing, exchange
from tests.actors.communicators.members import act_together

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
KINDS: list[Kind] = ["nccl", "symmetric"]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def opened(place: Rendezvous, kind: Kind) -> Peers:
    torch.cuda.set_device(place.index)
    return open_peers(kind, place)


@pytest.mark.parametrize("size", [size for size in (2, 4, 8) if size <= torch.cuda.device_count()])
@pytest.mark.parametrize("kind", KINDS)
def test_every_operation(kind: Kind, size: int) -> None:
    for problems in act_together(partial(opened, kind=kind), partial(exchange, size=size), size):
        assert differing(problems) == []


SIZES = [16, 64, 4096, 1 << 15, ONE_SHOT_BYTES // 8, ONE_SHOT_BYTES // 4, BUFFER_BYTES // 4, BUFFER_BYTES]
"""Numbers of values in two or four bytes each, on both sides of every limit."""


def sums(peers: Peers, index: int) -> list[bytes]:
    """Random numbers: what every rank gets, to the bit, and how far it is from the right sum."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        for size in SIZES:
            parts = torch.randn(2, size, generator=generator).to(dtype)
            out = peers.all_reduce(parts[index].cuda()).cpu()
            torch.testing.assert_close(out, parts.float().sum(0).to(dtype))
            found.append(out.view(torch.uint8).numpy().tobytes()[:4096])
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_all_ranks_get_the_same_bits(kind: Kind) -> None:
    first, second = act_together(partial(opened, kind=kind), sums)
    assert first == second


def captured(peers: Peers, index: int) -> list[str]:
    """A chain of collectives as one graph, replayed on new inputs, against the same chain launched."""
    x = torch.zeros(16, 4096, device="cuda", dtype=torch.bfloat16)

    def chain() -> Tensor:
        y = peers.all_reduce(x * 0.5)
        for _ in range(3):
            y = peers.all_reduce(y * 0.25) + x
        return peers.all_gather(y)

    chain()
    peers.finish()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = chain()
    problems = []
    for turn in range(5):
        x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(10 * turn + index)))
        wanted = chain().clone()
        graph.replay()
        peers.finish()
        if not torch.equal(out, wanted):
            problems.append(f"turn {turn}")
    return problems


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_hold_collectives(kind: Kind) -> None:
    assert act_together(partial(opened, kind=kind), captured) == [[], []]


def one_stays_away(peers: Peers, index: int) -> str:
    peers.all_reduce(torch.ones(3, device="cuda"))
    peers.finish()
    if index == 0:
        peers.all_reduce(torch.ones(4096, device="cuda"))
        peers.finish()
    return "away"


@pytest.mark.parametrize("kind", KINDS)
def test_a_timeout_names_the_rank_that_is_missing(kind: Kind) -> None:
    waiting, _ = act_together(partial(opened, kind=kind), one_stays_away, timeout_s=10)
    assert waiting.startswith("rank 0: waiting for the device in group test: no answer from rank 1 (")


def one_dies(peers: Peers, index: int) -> Any:
    peers.all_reduce(torch.ones(3, device="cuda"))
    peers.finish()
    if index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    peers.all_reduce(torch.ones(4096, device="cuda"))
    peers.finish()


@pytest.mark.parametrize("kind", KINDS)
def test_a_death_is_named_in_time(kind: Kind) -> None:
    survivor, dead = act_together(partial(opened, kind=kind), one_dies, timeout_s=10)
    assert dead == "died"
    assert survivor.startswith("rank 0: waiting for the device in group test: no answer from rank 1 (")


def given_up(peers: Peers, index: int) -> str:
    """Another thread ends the wait, long before its bound."""
    peers.all_reduce(torch.ones(3, device="cuda"))
    peers.finish()
    if index == 0:
        threading.Timer(1.0, peers.abort).start()
        peers.all_reduce(torch.ones(4096, device="cuda"))
        peers.finish()
    return "away"


@pytest.mark.parametrize("kind", KINDS)
def test_a_wait_can_be_given_up(kind: Kind) -> None:
    waiting, _ = act_together(partial(opened, kind=kind), given_up, timeout_s=3000)
    assert waiting == "rank 0: waiting for the device: the group was given up"


def alone(place: Rendezvous, kind: Kind) -> Peers:
    """The other member is a process that opens nothing."""
    if place.index == 1:
        return _Absent()  # type: ignore[return-value]
    return opened(place, kind)


class _Absent:
    def finish(self) -> None:
        pass


def stay(_peers: Peers, _index: int) -> str:
    return "there"


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_that_does_not_form(kind: Kind) -> None:
    waiting, _ = act_together(partial(alone, kind=kind), stay, timeout_s=5)
    assert waiting == "rank 0: rank 1 did not come to group test within 5 s"
