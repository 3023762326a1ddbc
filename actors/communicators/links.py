"""A rank's communicators: with its tensor parallel peers, and along the line of pipeline stages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch._C._distributed_c10d import Store

from actors.communicators.gloo import Gloo
from actors.communicators.peers import Peers
from actors.communicators.rendezvous import Rendezvous
from builders.mapping import Mapping
from builders.ops import tensor_parallel

Kind = Literal["gloo", "nccl", "symmetric"]


@dataclass(frozen=True, kw_only=True)
class Links:
    """What a rank is connected to."""

    peers: Peers | None
    """The ranks that share its layers; None where it has them alone."""
    line: Peers | None
    """Those with its part of the other stages, in the order of stages; None where there is one stage."""

    @contextmanager
    def meant(self) -> Iterator[None]:
        """Collectives of graphs that are run or captured inside are those of this rank's peers."""
        if self.peers is None:
            yield
            return
        with tensor_parallel(self.peers):
            yield

    def finish(self, done: torch.cuda.Event | None) -> None:
        """Wait until the device has come to this; bounded where it exchanges anything."""
        for group in (self.peers, self.line):
            if group is not None:
                group.finish(done)
        if done is not None:
            done.synchronize()

    def abort(self) -> None:
        """From another thread: end waits, see `Peers.abort`."""
        for group in (self.peers, self.line):
            if group is not None:
                group.abort()

    def close(self) -> None:
        for group in (self.peers, self.line):
            if group is not None:
                group.close()


def open_links(
    kind: Kind, mapping: Mapping, rank: int, store: Store, *, timeout_s: float, host: str
) -> Links:
    """Connect a rank; all ranks do so at the same time."""
    place, tp, pp = mapping.place(rank), mapping.tp_size, mapping.pp_size

    def group(name: str, ranks: range, index: int, kind: Kind) -> Peers | None:
        if len(ranks) == 1:
            return None
        return open_peers(
            kind,
            Rendezvous(
                store=store, name=name, ranks=tuple(ranks), index=index, timeout_s=timeout_s, host=host
            ),
        )

    stage = range(place.pp * tp, (place.pp + 1) * tp)
    line = range(place.tp, tp * pp, tp)
    return Links(
        peers=group(f"stage{place.pp}", stage, place.tp, kind),
        line=group(f"line{place.tp}", line, place.pp, "nccl" if kind == "symmetric" else kind),
    )


def open_peers(kind: Kind, place: Rendezvous) -> Peers:
    """A communicator; what GPUs need is imported for them alone."""
    if kind == "gloo":
        return Gloo(place)
    from actors.communicators.nccl import Nccl

    if kind == "nccl":
        return Nccl(place)
    from actors.communicators.symmetric import SymmetricMemory

    return SymmetricMemory(place, Nccl(place))
