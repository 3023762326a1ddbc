"""What it costs to tell another process of a step: our message, a bare ZeroMQ round trip, a Ray actor call.

All three go to a process on this machine and back, in one run, in turns. Usage:
python -m benchmarks.group_step [--sequences 1 64 256] [--rounds 2000]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import ray
import zmq

from actors.messages import Assigned, Order, StepPlan, StepResult, bits_of, decode, encode
from actors.rank_actors import here
from actors.wires import Endpoints, Head, Tail

TOKENS_PER_BLOCK = 32


class Echo:
    """The other process: gives back, in three ways."""

    def obey(self, endpoints: Endpoints) -> None:
        """Our messages: an order comes, a token for every sequence goes back."""
        tail = Tail(endpoints, 1)
        while data := tail.receive(wait=True):
            tail.send(answered(data))

    def bounce(self, endpoint: str) -> None:
        """As many bytes as come, through a bare socket."""
        socket = zmq.Context().socket(zmq.PAIR)
        socket.connect(endpoint)
        while True:
            socket.send(socket.recv())

    def call(self, data: bytes) -> bytes:
        """An actor call."""
        return data


def decoding(sequences: int) -> Order:
    """Every sequence decodes; those that are at the end of a block are given another."""
    grown = range(0, sequences, TOKENS_PER_BLOCK)
    plan = StepPlan(
        step=1,
        assigned=tuple(Assigned(slot, 20, (1000 + slot,)) for slot in grown),
        decode=bits_of((1 << sequences) - 1),
    )
    return Order(plan)


def answered(data: bytes) -> bytes:
    """What a rank makes of an order, but for the step itself."""
    plan = decode(Order, data).plan
    count = int.from_bytes(plan.decode, "little").bit_count()
    return encode(StepResult(plan.step, tuple(range(100_000, 100_000 + count))))


def ours(head: Head, sequences: int) -> Callable[[], None]:
    """An order there, a result back."""
    order = decoding(sequences)

    def turn() -> None:
        head.send(1, encode(order))
        while (data := head.receive()) is None:
            pass
        decode(StepResult, data)

    return turn


def packing(sequences: int) -> Callable[[], None]:
    """What of it is the work of both processes on messages, none of it on sockets."""
    order = decoding(sequences)

    def turn() -> None:
        decode(StepResult, answered(encode(order)))

    return turn


def bare(socket: zmq.Socket[bytes], data: bytes) -> Callable[[], None]:
    def turn() -> None:
        socket.send(data)
        socket.recv()

    return turn


def timed(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Microseconds of every turn; the ways alternate in blocks, so that a busy machine strikes all."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(10):
        for name, turn in ways.items():
            for index in range(rounds // 10 + 5):
                start = time.perf_counter()
                turn()
                if index >= 5:  # caches and branch predictors have settled
                    found[name].append(1e6 * (time.perf_counter() - start))
    return found


class Others:
    """The other processes, one for each way, all running."""

    def __init__(self) -> None:
        """Waits until each has answered."""
        self._near, self._far = (Head(here().host) for _ in range(2))
        context, self._folder = zmq.Context(), tempfile.TemporaryDirectory()
        self._local, self._tcp = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        endpoint = f"ipc://{self._folder.name}/bare"
        self._local.bind(endpoint)
        port = self._tcp.bind_to_random_port("tcp://127.0.0.1")
        actors = [ray.remote(Echo).remote() for _ in range(5)]
        ray.get([actor.call.remote(b"") for actor in actors])
        actors[0].obey.remote(self._near.endpoints(same_node=True))
        actors[1].obey.remote(self._far.endpoints(same_node=False))
        actors[2].bounce.remote(endpoint)
        actors[3].bounce.remote(f"tcp://127.0.0.1:{port}")
        self._called = actors[4]
        time.sleep(2)  # until those that are obeyed have connected

    def ways(self, sequences: int) -> dict[str, Callable[[], object]]:
        """Each for a step of so many sequences."""
        data = encode(decoding(sequences))
        return {
            "step message, local socket": ours(self._near, sequences),
            "step message, TCP": ours(self._far, sequences),
            "of it, packing and unpacking": packing(sequences),
            "bare ZeroMQ, local socket": bare(self._local, data),
            "bare ZeroMQ, TCP": bare(self._tcp, data),
            "Ray actor call": lambda: ray.get(self._called.call.remote(data)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, nargs="*", default=[1, 64, 256])
    parser.add_argument("--rounds", type=int, default=2000)
    options = parser.parse_args()
    ray.init(address="local", num_cpus=5, object_store_memory=80 << 20, include_dashboard=False)
    others = Others()
    print("| sequences | bytes | way | median us | 90% us |\n| --- | --- | --- | --- | --- |")
    for sequences in options.sequences:
        num_bytes = len(encode(decoding(sequences)))
        for name, times in timed(others.ways(sequences), options.rounds).items():
            tenth = statistics.quantiles(times, n=10)[-1]
            median = statistics.median(times)
            print(f"| {sequences} | {num_bytes} | {name} | {median:.0f} | {tenth:.0f} |", flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
