"""The ranks of a model, most of them Ray actors, which obey one process without going through Ray."""

from __future__ import annotations

import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from actors.communicators.links import Kind
from actors.communicators.rendezvous import call_off, host_store
from actors.rank_actors import RankActors, Room, here
from actors.rank_host import Whereabouts
from actors.rank_worker import RankSetup, RankWorker
from actors.step_messages import StepAnswer, StepOrder, decode, encode
from actors.vigil import Bounds, Vigil
from actors.wires import Head
from builders.engine_manifest import read_engine
from builders.errors import PeerError, WorkerError


@dataclass(frozen=True, kw_only=True)
class GroupPlan:
    """What a group of ranks is to be."""

    engine_dir: Path
    """On every node under the same path."""
    num_blocks: int
    """Of every rank's cache."""
    kind: Kind
    """How ranks exchange tensors."""
    inside: bool = True
    """Rank 0 lives in this process, which then needs its device; otherwise it is an actor like the others."""
    device: str | None = None
    """Of rank 0, where it lives in this process."""
    room: Room = field(default_factory=Room)
    bounds: Bounds = field(default_factory=Bounds)


class RankGroup:
    """All ranks of an engine. Steps are submitted in order, several at a time where there are several stages.

    The first failure ends the group: its actors are killed, and every call raises what went wrong.
    """

    def __init__(self, plan: GroupPlan) -> None:
        """Returns when every rank takes orders."""
        self._plan, self._here = plan, here()
        self._answers: deque[StepAnswer] = deque()
        self._worker: RankWorker | None = None
        deadline = time.monotonic() + plan.bounds.start_s
        world = read_engine(plan.engine_dir).checkpoint.mapping.world_size
        self._ranks = range(int(plan.inside), world)
        with ExitStack() as opened:
            self._store = host_store(self._here.host, plan.bounds.start_s)
            self._head = Head(self._here.host)
            opened.callback(self._head.close)
            self._actors = RankActors(self._ranks, plan.room)
            opened.callback(self._actors.close)
            self._actors.start(deadline)
            self._vigil = self._served()
            opened.callback(self._vigil.close)
            self._load_own(opened)
            self._until_ready(deadline)
            self._opened = opened.pop_all()

    def submit(self, order: StepOrder) -> None:
        """Have every rank compute a step; computes this process's own part of it."""
        self._vigil.check()
        data = encode(order)
        for rank in self._ranks:
            self._head.send(rank, data)
        if order.answer != "nothing":
            self._vigil.began(order.number)
        if self._worker is not None:
            self._compute(self._worker, order)

    def collect(self) -> StepAnswer:
        """The next answer, in the order of steps."""
        while not self._answers:
            self._vigil.check()
            if data := self._head.receive():
                self._answers.append(decode(StepAnswer, data))
        answer = self._answers.popleft()
        self._vigil.ended(answer.number)
        return answer

    def check(self) -> None:
        """Raise what has gone wrong since, if anything has."""
        self._vigil.check()

    def close(self) -> None:
        """End all ranks."""
        self._opened.close()

    def __enter__(self) -> RankGroup:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def where(self) -> dict[int, Whereabouts]:
        """The ranks that are actors."""
        return dict(self._actors.where)

    def _served(self) -> Vigil:
        near = self._here.node
        serving = self._actors.serve(
            self._setup, lambda where: self._head.endpoints(same_node=where.node == near)
        )
        return Vigil(self._head, self._actors.where, serving, self._plan.bounds, self._give_up)

    def _give_up(self) -> None:
        """End every wait: those for ranks that load, and those for ranks that compute."""
        call_off(self._store)
        if self._worker is not None:
            self._worker.abort()
        self._actors.kill()

    def _setup(self, rank: int) -> RankSetup:
        plan = self._plan
        return RankSetup(
            engine_dir=plan.engine_dir,
            rank=rank,
            num_blocks=plan.num_blocks,
            kind=plan.kind,
            store=(self._here.host, self._store.port),
            wait_s=plan.bounds.wait_s,
            start_s=plan.bounds.start_s,
            beat_s=plan.bounds.beat_s,
        )

    def _load_own(self, opened: ExitStack) -> None:
        if not self._plan.inside:
            return
        try:
            self._worker = RankWorker(self._setup(0), host=self._here.host, device=self._plan.device)
        except PeerError as error:
            self._vigil.explain(error)
        opened.callback(self._worker.close)

    def _until_ready(self, deadline: float) -> None:
        while not self._vigil.all_ready:
            self._vigil.check()
            if time.monotonic() > deadline:
                raise WorkerError(f"{self._plan.engine_dir}: not all ranks have loaded in time")
            time.sleep(0.01)

    def _compute(self, worker: RankWorker, order: StepOrder) -> None:
        try:
            answer = worker.obey(order)
        except PeerError as error:
            self._vigil.explain(error)
        if answer is not None:
            self._answers.append(answer)
