"""What a Ray actor does that holds a rank: obeys orders from a socket, and shows that it is alive."""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass

import ray
import torch

from actors.messages import Order, decode, encode
from actors.pending import Pending
from actors.rank_worker import RankSetup, RankWorker
from actors.wires import Endpoints, Pulse, Tail

AHEAD = 2
"""Steps that may be under way on a device; with more, their order is waited for."""

_LOOK_S, _PATIENCE_S = 50e-6, 1.0
"""How often a device is looked at, and for how long, before it is waited for."""


@dataclass(frozen=True, kw_only=True)
class Whereabouts:
    """Where a rank's process is."""

    node: str
    """Ray's name for it."""
    host: str
    """The node's address."""
    pid: int
    free_bytes: int | None = None
    """Of its GPU."""


class RankHost:
    """What a Ray actor is made of. Its calls start and end a rank; steps do not pass through Ray."""

    def whereabouts(self) -> Whereabouts:
        """Where it is; answered once everything that a rank needs is imported."""
        node, device = ray.get_runtime_context().get_node_id(), _device()
        return Whereabouts(
            node=node,
            host=ray.util.get_node_ip_address(),
            pid=os.getpid(),
            free_bytes=torch.cuda.mem_get_info(device)[0] if device else None,
        )

    def serve(self, setup: RankSetup, endpoints: Endpoints, beat_s: float) -> None:
        """Obey until this process is ended. What this raises, Ray brings to the group."""
        device = _device()
        if device:
            torch.cuda.set_device(device)
        with Pulse(endpoints, setup.rank, beat_s) as pulse:
            tail = Tail(endpoints, setup.rank)
            worker = RankWorker(setup, host=ray.util.get_node_ip_address(), device=device)
            pulse.is_ready()
            _Obedience(worker, tail, pulse).go_on()


class _Obedience:
    """Begins every step at once, so that the device always has work, and answers as soon as one is done."""

    def __init__(self, worker: RankWorker, tail: Tail, pulse: Pulse) -> None:
        self._worker, self._tail, self._pulse = worker, tail, pulse
        self._under_way: deque[Pending] = deque()

    def go_on(self) -> None:
        while True:
            self._begin(self._next())
            while len(self._under_way) >= AHEAD:
                self._finish()

    def _next(self) -> bytes:
        """The next order; answers what gets done before it comes."""
        looked_since = time.monotonic()
        while self._under_way:
            if (data := self._tail.receive(wait=False)) is not None:
                return data
            if self._worker.is_done(self._under_way[0]) or time.monotonic() - looked_since > _PATIENCE_S:
                self._finish()
            else:
                time.sleep(_LOOK_S)
        data = self._tail.receive(wait=True)
        assert data is not None, "a wait ends with an order"
        return data

    def _begin(self, data: bytes) -> None:
        self._under_way.append(self._worker.begin(decode(Order, data)))

    def _finish(self) -> None:
        result = self._worker.finish(self._under_way.popleft())
        self._pulse.done += 1
        if result is not None:
            self._tail.send(encode(result))


def _device() -> str | None:
    """The one that Ray gave this actor; all are visible, see `actors.communicators.symmetric`."""
    held = ray.get_gpu_ids()
    return device_named(str(held[0]), os.environ.get("CUDA_VISIBLE_DEVICES")) if held else None


def device_named(held: str, visible: str | None) -> str:
    """As PyTorch counts devices; where some are hidden, Ray names one as the list of the others does."""
    return f"cuda:{visible.split(',').index(held) if visible else held}"
