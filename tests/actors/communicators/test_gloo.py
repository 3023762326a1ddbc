"""Gloo between real processes: what it computes, and who is named when somebody is missing."""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import cast

import torch

from actors.communicators.gloo import Gloo
from actors.communicators.peers import Peers
from actors.communicators.rendezvous import Rendezvous
from tests.actors.communicators.checks import differing, exchange
from tests.actors.communicators.members import act_together


def test_every_operation() -> None:
    for problems in act_together(Gloo, partial(exchange, size=3), 3):
        assert differing(problems) == []


def last_stays_away(peers: Peers, index: int) -> str:
    """From the second collective."""
    peers.all_reduce(torch.ones(3))
    if index < 2:
        peers.all_reduce(torch.ones(3))
    return "away"


def test_a_timeout_names_the_rank_that_is_missing() -> None:
    first, second, _ = act_together(Gloo, last_stays_away, 3, timeout_s=6, ranks=(4, 5, 6))
    for rank, error in ((4, first), (5, second)):
        assert error.startswith(f"rank {rank}: all_reduce in group test: no answer from rank 6 (")


def kill_self(peers: Peers, index: int) -> None:
    peers.all_reduce(torch.ones(3))
    if index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    peers.all_reduce(torch.ones(3))


def test_a_death_ends_the_wait_at_once() -> None:
    """Long before the bound: the test would not end in time otherwise."""
    survivor, dead = act_together(Gloo, kill_self, timeout_s=3000)
    assert dead == "died"
    assert survivor.startswith("rank 0: all_reduce in group test: no answer from rank 1 (")


def receive_in_vain(peers: Peers, index: int) -> str:
    if index == 0:
        peers.receive((3, 4), torch.float32, 1)
    return "sends nothing"


def test_receiving_is_bounded() -> None:
    waiting, _ = act_together(Gloo, receive_in_vain, timeout_s=5)
    assert waiting.startswith("rank 0: receive in group test: no answer from rank 1 (")


class Nobody:
    """Takes part in nothing."""

    def finish(self) -> None:
        pass


def all_but_the_last(place: Rendezvous) -> Peers:
    return cast(Peers, Nobody()) if place.index == 2 else Gloo(place)


def stay(_peers: Peers, _index: int) -> str:
    return "there"


def test_a_group_that_does_not_form() -> None:
    first, second, _ = act_together(all_but_the_last, stay, 3, timeout_s=6)
    for rank, error in enumerate((first, second)):
        assert error == f"rank {rank}: rank 2 did not come to group test within 6 s"
