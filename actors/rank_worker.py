"""One rank of a model: its engine, its links to other ranks, and its part of every step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from actors.cache_size import cache_limits
from actors.chooser import Chooser, Vocabulary
from actors.communicators.links import Kind, Links, open_links
from actors.communicators.rendezvous import Rendezvous, join_store
from actors.messages import Order, StepPlan, StepResult
from actors.pending import Pending, mark
from actors.step_builder import Batch, StepBuilder
from builders.cuda.engine import CudaEngine
from builders.cuda.steps import there
from builders.engine_folder import load_engine
from builders.engine_manifest import read_engine


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Where the ranks of a group find each other."""

    kind: Kind
    """How they exchange tensors."""
    store: tuple[str, int]
    """Host and port of the store in which they meet."""
    wait_s: float
    """How long one may wait for others within a step."""
    start_s: float
    """How long one may wait for others to load."""


@dataclass(frozen=True, kw_only=True)
class RankSetup:
    """What a rank is told before its first step."""

    engine_dir: Path
    rank: int
    num_blocks: int
    """Of the cache."""
    ends: tuple[int, ...] = ()
    """The tokens that end a text."""
    meeting: Meeting | None = None
    """None for one that is alone."""


class RankWorker:
    """Computes its part of every step, in lockstep with its peers and after the stage before it.

    On a GPU, `begin` only enqueues.
    """

    def __init__(self, setup: RankSetup, *, host: str = "127.0.0.1", device: str | None = None) -> None:
        """Loads the engine, waits until all ranks have, connects; graphs are captured last."""
        manifest = read_engine(setup.engine_dir)
        checkpoint, limits = manifest.checkpoint, cache_limits(manifest)
        mapping, spec = checkpoint.mapping, checkpoint.spec
        self._place, self._last_stage = mapping.place(setup.rank), mapping.pp_size - 1
        self._hidden, self._dtype = spec.hidden_size, getattr(torch, checkpoint.dtype)
        self._engine = load_engine(setup.engine_dir, setup.rank, num_blocks=setup.num_blocks, device=device)
        self._graphs = self._engine if isinstance(self._engine, CudaEngine) else None
        self._device = torch.device(device or ("cpu" if manifest.target == "cpu" else "cuda"))
        self._links = _linked(setup, mapping.world_size, host)
        slots = limits.max_sequences * mapping.pp_size
        table = self._graphs.table if self._graphs else None
        self._steps = StepBuilder(limits, lanes=mapping.pp_size, table=table)
        self._last = torch.zeros(slots + 1, dtype=torch.int64, device=self._device)
        vocabulary = Vocabulary(
            size=spec.vocab_size,
            ends=setup.ends,
            max_seq_len=limits.max_seq_len,
            tokenizer=setup.engine_dir / "tokenizer",
        )
        drawer = self._graphs.draw if self._graphs and self._graphs.draws else None
        finder = self._graphs.likeliest if self._graphs and self._graphs.finding else None
        self._chooser = Chooser(vocabulary, self._last, drawer, finder) if self._chooses else None
        if self._graphs:
            self._capture(self._graphs)

    @property
    def answers(self) -> bool:
        """Whether it is the one whose choice is told: all ranks of the last stage have the same logits."""
        return self._place.pp == self._last_stage and self._place.tp == 0

    @property
    def _chooses(self) -> bool:
        """Where there is one stage, every rank needs the tokens."""
        return self.answers or self._last_stage == 0

    @torch.no_grad()
    def begin(self, order: Order) -> Pending:
        """A step; plans come in order, none left out."""
        batch = self._steps.build(order.plan)
        self._take_in(order.plan)
        out, captured = self._computed(order, batch)
        chooser = self._chooser
        if chooser is None:
            return Pending(done=mark(self._device), result=None)
        if captured and chooser.is_plain(order.plan):
            chosen = chooser.taken(order.plan, batch)
        else:
            chosen = chooser.choose(order.plan, batch, out)
        return chosen if self.answers else Pending(done=chosen.done, result=None)

    def is_done(self, pending: Pending) -> bool:
        """Whether `finish` would not wait."""
        return pending.done is None or pending.done.query()

    def finish(self, pending: Pending) -> StepResult | None:
        """Wait for a step; its result, where it is this rank that answers."""
        self._links.finish(pending.done)
        return pending.result() if pending.result else None

    def abort(self) -> None:
        """From another thread: waits for other ranks end, as far as they can be ended from here."""
        self._links.abort()

    def close(self) -> None:
        """Leave the others, and give back the memory of weights and cache."""
        self._links.close()
        if self._graphs:
            self._graphs.close()
        del self._engine, self._graphs, self._chooser
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _take_in(self, plan: StepPlan) -> None:
        if self._chooser:
            self._chooser.take_in(plan)
        if plan.copies:
            self._engine.copy_blocks(plan.copies)
        if self._graphs and (changed := self._steps.changed()):
            self._graphs.set_blocks(*changed)

    def _computed(self, order: Order, batch: Batch) -> tuple[Tensor, bool]:
        """Logits, or hidden states that are handed on; whether a graph did it."""
        line, stage, step = self._links.line, self._place.pp, batch.step
        x = None if stage else self._ids(order, batch)
        if stage:
            assert line is not None, "a later stage has an earlier one"
            x = line.receive((len(batch.tokens), self._hidden), self._dtype, stage - 1)
        with self._links.meant():
            if captured := self._graphs is not None and batch.is_decoding:
                out = self._graphs.decode(step, x)
            else:
                assert x is not None, "what is not captured has its input"
                out = self._engine.forward(x, step)
        if stage < self._last_stage:
            assert line is not None, "an earlier stage has a later one"
            line.send(out, stage + 1)
        return out, captured

    def _ids(self, order: Order, batch: Batch) -> Tensor | None:
        """A step's tokens, those that only the device knows from `last`; graphs read all of them there."""
        tokens, unknown = batch.tokens, batch.num_decoding
        if order.tokens:
            tokens[:unknown] = torch.from_numpy(np.frombuffer(order.tokens, dtype=np.int32).astype(np.int64))
            unknown = 0
        if self._graphs and batch.is_decoding:
            if unknown < len(tokens):
                slots = there(batch.slots[unknown:], self._device)
                self._last[slots] = there(tokens[unknown:], self._device)
            return None
        ids = there(tokens, self._device)
        if unknown:
            ids[:unknown] = self._last[there(batch.slots[:unknown], self._device)]
        return ids

    def _capture(self, engine: CudaEngine) -> None:
        """Graphs hold the choice of tokens, as far as it is the same for everyone, and their way back."""
        before = self._last.__getitem__ if self._place.pp == 0 else None
        # With nothing to do, too: all ranks of a stage have to tell alike what is a graph's.
        after = self._chooser.greedily if self._chooser else lambda _out, _rows: None
        peers = self._links.peers
        if peers is not None and peers.buffers is not None:
            engine.join(peers.buffers)
        with torch.no_grad(), self._links.meant():
            engine.prepare(before=before, after=after)
            if self._chooser:
                self._chooser.warm_up()


def _linked(setup: RankSetup, world_size: int, host: str) -> Links:
    """Connect, once everyone has loaded."""
    meeting = setup.meeting
    if meeting is None:
        return Links(peers=None, line=None)
    store = join_store(*meeting.store, meeting.start_s)
    Rendezvous(
        store=store,
        name="loaded",
        ranks=tuple(range(world_size)),
        index=setup.rank,
        timeout_s=meeting.start_s,
    ).arrive()
    mapping = read_engine(setup.engine_dir).checkpoint.mapping
    return open_links(meeting.kind, mapping, setup.rank, store, timeout_s=meeting.wait_s, host=host)
