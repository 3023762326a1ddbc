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
import torch
import zmq

from actors.messages import (
    Admitted,
    Assigned,
    Chunk,
    Order,
    StepPlan,
    StepResult,
    bits_of,
    decode,
    encode,
    packed,
)
from actors.rank_actors import here
from actors.sampling_params import SamplingParams
from actors.step_builder import StepBuilder
from actors.wires import Endpoints, Head, Tail
from builders.limits import Limits

MOST, CONTEXT = 256, 768
LIMITS = Limits(max_batch_size=MOST, max_input_len=CONTEXT, max_seq_len=1 << 14, tokens_per_block=32)


class Rank:
    """What a rank does with an order beside computing: its step as tensors, and a token for every row."""

    def __init__(self) -> None:
        self._builder = StepBuilder(LIMITS, table=torch.zeros(MOST + 1, 1, dtype=torch.int64))
        slots = range(MOST)
        last = tuple(Chunk(slot, CONTEXT - 1, 1, (slot,)) for slot in slots)
        self._builder.build(StepPlan(0, admitted=tuple(map(_admitted, slots)), chunks=last))

    def obey(self, data: bytes) -> bytes:
        batch = self._builder.build(decode(Order, data).plan)
        self._builder.changed()
        return encode(StepResult(1, tuple(batch.step.positions.tolist())))


def _admitted(slot: int) -> Admitted:
    blocks = tuple(range(slot, slot + CONTEXT // LIMITS.tokens_per_block))
    return Admitted(slot, f"r{slot}", 0, SamplingParams(), packed([1] * CONTEXT), CONTEXT, blocks)


class Echo:
    """The other process: gives back, in three ways."""

    def obey(self, endpoints: Endpoints) -> None:
        """Our messages."""
        tail, rank = Tail(endpoints, 1), Rank()
        while True:
            data = tail.receive(wait=True)
            assert data is not None, "a wait ends with an order"
            tail.send(rank.obey(data))

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
    """A token for each of so many sequences, told to ranks that did not sample it; some have a new block."""
    grown = tuple(Assigned(slot, 24, (4000 + slot,)) for slot in range(0, sequences, 32))
    plan = StepPlan(1, assigned=grown, decode=bits_of((1 << sequences) - 1))
    return Order(plan, packed([1000] * sequences))


def ours(head: Head, sequences: int) -> Callable[[], None]:
    """A plan to an order, there, to tensors; the result back."""
    order = decoding(sequences)

    def turn() -> None:
        head.send(1, encode(order))
        while (data := head.receive()) is None:
            pass
        decode(StepResult, data)

    return turn


def packing(sequences: int) -> Callable[[], None]:
    """What of it is the work of both processes on messages, none of it on sockets."""
    order, rank = decoding(sequences), Rank()
    return lambda: decode(StepResult, rank.obey(encode(order)))


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
    torch.set_num_threads(1)
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
