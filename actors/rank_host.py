"""What a Ray actor does that holds a rank: obeys orders from a socket, and shows that it is alive."""

from __future__ import annotations

import os
from dataclasses import dataclass

import ray

from actors.rank_worker import RankSetup, RankWorker
from actors.step_messages import StepOrder, decode, encode
from actors.wires import Endpoints, Pulse, Tail


@dataclass(frozen=True, kw_only=True)
class Whereabouts:
    """Where a rank's process is."""

    node: str
    """Ray's name for it."""
    host: str
    """The node's address."""
    pid: int


class RankHost:
    """What a Ray actor is made of. Its calls start and end a rank; steps do not pass through Ray."""

    def whereabouts(self) -> Whereabouts:
        """Where it is; answered once everything that a rank needs is imported."""
        context = ray.get_runtime_context()
        return Whereabouts(node=context.get_node_id(), host=ray.util.get_node_ip_address(), pid=os.getpid())

    def serve(self, setup: RankSetup, endpoints: Endpoints) -> None:
        """Obey until this process is ended. What this raises, Ray brings to the group."""
        with Pulse(endpoints, setup.rank, setup.beat_s) as pulse:
            tail = Tail(endpoints, setup.rank)
            worker = RankWorker(setup, host=self.whereabouts().host, device=_device())
            pulse.is_ready()
            while True:
                order = decode(StepOrder, tail.receive())
                if answer := worker.obey(order):
                    tail.send(encode(answer))
                pulse.done = order.number


def _device() -> str | None:
    """The one that Ray gave this actor; all are visible, see `actors.communicators.symmetric`."""
    held = ray.get_gpu_ids()
    return f"cuda:{held[0]}" if held else None
