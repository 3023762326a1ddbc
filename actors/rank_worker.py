"""One rank of a model: its engine, its links to other ranks, and its part of every step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from actors.communicators.links import Kind, open_links
from actors.communicators.rendezvous import Rendezvous, join_store
from actors.step_messages import StepAnswer, StepOrder, answer_of, step_of
from builders.engine_folder import load_engine
from builders.engine_manifest import read_engine
from builders.ops import Step


@dataclass(frozen=True, kw_only=True)
class RankSetup:
    """What a rank is told before its first step."""

    engine_dir: Path
    rank: int
    num_blocks: int
    """Of the cache."""
    kind: Kind
    """How it exchanges tensors."""
    store: tuple[str, int]
    """Host and port of the store in which ranks meet."""
    wait_s: float
    """How long it may wait for other ranks within a step."""
    start_s: float
    """How long it may wait for them to load."""
    beat_s: float
    """How often it shows that it is alive."""


class RankWorker:
    """Computes its part of every step, in lockstep with its peers and after the stage before it."""

    def __init__(self, setup: RankSetup, *, host: str, device: str | None) -> None:
        """Loads the engine, waits until all ranks have, connects; graphs are captured last."""
        checkpoint = read_engine(setup.engine_dir).checkpoint
        self._place = checkpoint.mapping.place(setup.rank)
        self._last = self._place.pp == checkpoint.mapping.pp_size - 1
        self._hidden, self._dtype = checkpoint.spec.hidden_size, getattr(torch, checkpoint.dtype)
        self._engine = load_engine(setup.engine_dir, setup.rank, num_blocks=setup.num_blocks, device=device)
        store = join_store(*setup.store, setup.start_s)
        _meet(store, setup, checkpoint.mapping.world_size)
        self._links = open_links(
            setup.kind, checkpoint.mapping, setup.rank, store, timeout_s=setup.wait_s, host=host
        )
        if prepare := getattr(self._engine, "prepare", None):
            with torch.no_grad(), self._links.meant():
                prepare()

    @property
    def answers(self) -> bool:
        """Whether it is the one whose logits are taken: all ranks of the last stage have the same."""
        return self._last and self._place.tp == 0

    @torch.no_grad()
    def forward(self, ids: Tensor, step: Step) -> Tensor | None:
        """Logits of the wanted tokens on the ranks of the last stage; the others hand on hidden states."""
        line, stage, x = self._links.line, self._place.pp, ids
        if stage > 0:
            assert line is not None, "a later stage has an earlier one"
            x = line.receive((len(ids), self._hidden), self._dtype, stage - 1)
        with self._links.meant():
            x = self._engine.forward(x, step)
        if self._last:
            return x
        assert line is not None, "an earlier stage has a later one"
        line.send(x, stage + 1)
        return None

    def obey(self, order: StepOrder) -> StepAnswer | None:
        """Compute a step; the answer, where it is wanted of this rank."""
        logits = self.forward(*step_of(order))
        self._links.finish()
        if logits is None or not self.answers or order.answer == "nothing":
            return None
        return answer_of(order, logits)

    def abort(self) -> None:
        """From another thread: waits for other ranks end, as far as they can be ended from here."""
        self._links.abort()

    def close(self) -> None:
        self._links.close()


def _meet(store: TCPStore, setup: RankSetup, world_size: int) -> None:
    """Wait until everyone has loaded."""
    Rendezvous(
        store=store,
        name="loaded",
        ranks=tuple(range(world_size)),
        index=setup.rank,
        timeout_s=setup.start_s,
    ).arrive()
