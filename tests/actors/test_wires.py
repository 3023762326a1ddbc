"""Sockets between a head and its ranks: what is passed on, and what strangers cannot do."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import zmq

from actors.messages import Beat, encode
from actors.wires import Head, Pulse, Tail
from builders.errors import WorkerError


@pytest.fixture
def head() -> Iterator[Head]:
    opened = Head("127.0.0.1")
    yield opened
    opened.close()


@pytest.mark.parametrize("same_node", [True, False])
def test_there_and_back(head: Head, same_node: bool) -> None:
    endpoints = head.endpoints(same_node=same_node)
    tails = {rank: Tail(endpoints, rank) for rank in (1, 2)}
    for rank, tail in tails.items():
        sent_when_connected(head, rank, b"order %d" % rank)
        assert tail.receive(wait=True) == b"order %d" % rank
        tail.send(b"answer %d" % rank)
        assert heard(head) == b"answer %d" % rank
        tail.close()


def test_a_rank_that_never_connected(head: Head) -> None:
    with pytest.raises(WorkerError, match=r"^rank 3: does not take its orders \(Host unreachable\)$"):
        head.send(3, b"order")


def test_strangers_are_not_heard(head: Head) -> None:
    """Whoever finds the ports knows no secret, and can neither answer, nor be ordered, nor end the watch."""
    endpoints = head.endpoints(same_node=False)
    stranger = Tail(replace(endpoints, secret=b"0" * 16), 1)
    tail = Tail(endpoints, 1)
    sent_when_connected(head, 1, b"order")
    assert tail.receive(wait=True) == b"order"
    stranger.send(b"forged")
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.connect(endpoints.beats)
        forged = Beat(secret=b"0" * 16, rank=1, ready=True, done=9)
        for data in (b"", b"\xff\xff", b"{}", encode(forged)):
            socket.send(data)
        with Pulse(endpoints, 1, 0.01):
            beats = [beat for _ in range(20) for beat in head.beats(0.05)]
    tail.send(b"answer")
    assert heard(head) == b"answer"
    assert beats and all((beat.ready, beat.done) == (False, 0) for beat in beats)
    stranger.close()
    tail.close()


def test_a_pulse_says_how_far_a_rank_is(head: Head) -> None:
    with Pulse(head.endpoints(same_node=True), 5, 0.01) as pulse:
        pulse.is_ready()
        pulse.done = 12
        deadline = time.monotonic() + 30
        while not any(beat.ready and beat.done == 12 for beat in head.beats(0.1)):
            assert time.monotonic() < deadline, "it is never said"
    assert "pulse" not in {thread.name for thread in threading.enumerate()}


def sent_when_connected(head: Head, rank: int, data: bytes) -> None:
    """Connecting takes a moment."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return head.send(rank, data)
        except WorkerError:
            assert time.monotonic() < deadline, "it never connects"
            time.sleep(0.01)


def heard(head: Head) -> bytes:
    """The next answer, whatever comes before it that is none."""
    deadline = time.monotonic() + 30
    while (data := head.receive()) is None:
        assert time.monotonic() < deadline, "nothing comes"
    return data
