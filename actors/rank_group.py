"""The ranks of a model, most of them Ray actors, which obey one process without going through Ray."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import torch

from actors.communicators.links import Kind
from actors.communicators.rendezvous import call_off, host_store
from actors.messages import Order, StepResult, decode, encode
from actors.pending import Pending
from actors.rank_actors import RankActors, Room, here
from actors.rank_host import Whereabouts
from actors.rank_worker import Meeting, RankSetup, RankWorker
from actors.vigil import Bounds, Vigil, named
from actors.wires import Head
from builders.engine_manifest import read_engine
from builders.errors import PeerError, RankforgeError, WorkerError


@dataclass(frozen=True, kw_only=True)
class GroupPlan:
    """What a group of ranks is to be."""

    engine_dir: Path
    """On every node under the same path."""
    blocks: Callable[[int | None], int]
    """Of every rank's cache, from the bytes that are free on the fullest GPU; None where there is none."""
    kind: Kind | None = None
    """How ranks exchange tensors; None takes the fastest that works for their places."""
    ends: tuple[int, ...] = ()
    """The tokens that end a text."""
    inside: bool = True
    """Rank 0 lives in this process, which then needs its device; otherwise it is an actor like the others."""
    device: str | None = None
    """Of rank 0, where it lives in this process."""
    room: Room = field(default_factory=Room)
    bounds: Bounds = field(default_factory=Bounds)


class RankGroup:
    """All ranks of an engine: `actors.ranks.Ranks`.

    The first failure ends the group: its actors are killed, and every call raises what went wrong.
    """

    def __init__(self, plan: GroupPlan) -> None:
        """Returns when every rank takes orders."""
        self._plan, self._here = plan, here()
        self._under_way: deque[Pending] = deque()
        self._worker: RankWorker | None = None
        deadline = time.monotonic() + plan.bounds.start_s
        self._world = read_engine(plan.engine_dir).checkpoint.mapping.world_size
        self._ranks = range(int(plan.inside), self._world)
        with ExitStack() as opened:
            self._store = host_store(self._here.host, plan.bounds.start_s)
            self._head = Head(self._here.host)
            opened.callback(self._head.close)
            self._actors = RankActors(self._ranks, plan.room)
            opened.callback(self._actors.close)
            self._actors.start(deadline)
            self.num_blocks = plan.blocks(self._free_bytes())
            self._vigil = self._served()
            opened.callback(self._vigil.close)
            self._load_own(opened)
            self._until_ready(deadline)
            self._opened = opened.pop_all()

    def submit(self, order: Order) -> None:
        """Have every rank compute a step; begins this process's own part of it."""
        self._vigil.check()
        data = encode(order)
        with self._explained():  # a rank that has raised hears nothing any more
            for rank in self._ranks:
                self._head.send(rank, data)
        self._vigil.began(order.plan.step)
        if self._worker is not None:
            with self._explained(), _Own(self._here):
                self._under_way.append(self._worker.begin(order))

    def collect(self) -> StepResult:
        """The next result, in the order of steps."""
        own = None
        if self._worker is not None:
            with self._explained(), _Own(self._here):
                own = self._worker.finish(self._under_way.popleft())
        result = own or self._answer()
        self._vigil.ended(result.step)
        return result

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

    def _answer(self) -> StepResult:
        """Of the rank that answers, which is an actor."""
        while True:
            self._vigil.check()
            if data := self._head.receive():
                return decode(StepResult, data)

    def _free_bytes(self) -> int | None:
        found = [where.free_bytes for where in self._actors.where.values() if where.free_bytes is not None]
        if self._plan.device:
            found.append(torch.cuda.mem_get_info(self._plan.device)[0])
        return min(found, default=None)

    def _served(self) -> Vigil:
        near = self._here.node
        serving = self._actors.serve(
            self._setup,
            lambda where: self._head.endpoints(same_node=where.node == near),
            self._plan.bounds.beat_s,
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
        meeting = Meeting(
            kind=plan.kind or self._kind(),
            store=(self._here.host, self._store.port),
            wait_s=plan.bounds.wait_s,
            start_s=plan.bounds.start_s,
        )
        return RankSetup(
            engine_dir=plan.engine_dir,
            rank=rank,
            num_blocks=self.num_blocks,
            ends=plan.ends,
            meeting=meeting,
        )

    def _kind(self) -> Kind:
        """Direct reading of each other's memory is for one node."""
        if self._free_bytes() is None:
            return "gloo"
        nodes = {where.node for where in self._actors.where.values()}
        if self._plan.inside:
            nodes.add(self._here.node)
        return "symmetric" if len(nodes) == 1 else "nccl"

    def _load_own(self, opened: ExitStack) -> None:
        if not self._plan.inside:
            return
        with self._explained():
            self._worker = RankWorker(self._setup(0), host=self._here.host, device=self._plan.device)
        assert self._worker, "it has loaded"
        opened.callback(self._worker.close)

    def _until_ready(self, deadline: float) -> None:
        while not self._vigil.all_ready:
            self._vigil.check()
            if time.monotonic() > deadline:
                raise WorkerError(f"{self._plan.engine_dir}: not all ranks have loaded in time")
            time.sleep(0.01)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Who waits in vain raises the cause."""
        try:
            yield
        except PeerError as error:
            self._vigil.explain(error)


@dataclass(frozen=True)
class _Own:
    """What this process's own rank raises is told as that of any other is."""

    where: Whereabouts

    def __enter__(self) -> None: ...

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, RankforgeError):
            raise WorkerError(f"{named(0, self.where)}: {type(error).__name__}: {error}") from error
