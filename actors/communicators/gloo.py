"""The communicator of CPUs: gloo, over TCP."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import AllgatherOptions, ProcessGroupGloo

from actors.communicators.rendezvous import Rendezvous


class Gloo:
    """See `actors.communicators.peers.Peers`. A peer that dies ends a wait at once, a silent one in time."""

    buffers = None

    def __init__(self, place: Rendezvous) -> None:
        place.arrive()
        self.rank, self.size, self._place = place.index, place.size, place
        self._group = self._done("forming", lambda: gloo_group(place))
        self._sent: tuple[Any, Tensor] | None = None

    def all_reduce(self, x: Tensor) -> Tensor:
        out = x.clone(memory_format=torch.contiguous_format)
        self._wait("all_reduce", lambda: self._group.allreduce([out]))
        return out

    def all_gather(self, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        given = x.contiguous()
        self._wait("all_gather", lambda: self._group.allgather([parts], [given], AllgatherOptions()))
        return torch.cat(parts, dim=-1)

    def broadcast(self, x: Tensor, root: int) -> Tensor:
        out = x.clone(memory_format=torch.contiguous_format)
        self._wait("broadcast", lambda: self._group.broadcast(out, root=root))
        return out

    def send(self, x: Tensor, to: int) -> None:
        """Returns when the tensor before this one has left, so that the sender can go on computing."""
        self.finish()
        out = x.clone(memory_format=torch.contiguous_format)
        work = self._done("send", lambda: self._group.send([out], to, 0))
        self._sent = (work, out)

    def receive(self, shape: Sequence[int], dtype: torch.dtype, source: int) -> Tensor:
        out = torch.empty(*shape, dtype=dtype)
        self._wait("receive", lambda: self._group.recv([out], source, 0))
        return out

    def finish(self, done: torch.cuda.Event | None = None) -> None:
        """Only what is sent goes on in the background."""
        if self._sent is not None:
            (work, _), self._sent = self._sent, None
            self._wait("send", lambda: work)

    def close(self) -> None:
        self._sent = None
        del self._group

    def abort(self) -> None:
        """Gloo cannot be interrupted."""

    def _wait(self, action: str, start: Any) -> None:
        self._done(action, lambda: start().wait())

    def _done(self, action: str, call: Any) -> Any:
        try:
            return call()
        except RuntimeError as error:
            self._place.fail(action, str(error))


def gloo_group(place: Rendezvous) -> ProcessGroupGloo:
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timedelta(seconds=place.timeout_s)
    options._devices = [ProcessGroupGloo.create_device(hostname=place.host)]
    return ProcessGroupGloo(place.scope, place.index, place.size, options)
