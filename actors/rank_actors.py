"""Ranks as Ray actors: placed together, started, told where to connect, and ended for sure."""

from __future__ import annotations

import os
import secrets
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.util import get_current_placement_group
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.communicators.symmetric import ENVIRONMENT
from actors.endings import exit_detail
from actors.rank_host import RankHost, Whereabouts
from actors.rank_worker import RankSetup
from actors.wires import Endpoints
from builders.errors import WorkerError

Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]


@dataclass(frozen=True, kw_only=True)
class Room:
    """What actors take of the cluster."""

    num_cpus: float = 1
    """For each of them."""
    num_gpus: float = 0
    strategy: Strategy = "PACK"
    """How Ray spreads them over nodes."""
    bundles: tuple[int, ...] = ()
    """For every rank, its bundle in the placement group that this process is in; empty makes a group."""

    @property
    def bundle(self) -> dict[str, float]:
        """As Ray counts it."""
        return {"CPU": self.num_cpus} | ({"GPU": self.num_gpus} if self.num_gpus else {})


class RankActors:
    """An actor for every rank that is not elsewhere."""

    def __init__(self, ranks: Sequence[int], room: Room) -> None:
        self._ranks, self._room = ranks, room
        self.where: dict[int, Whereabouts] = {}
        self._actors: dict[int, Any] = {}
        self._processes: list[int] = []
        self._name = secrets.token_hex(8)
        self._placed = _placed(ranks, room) if ranks else None

    def start(self, deadline: float) -> None:
        """Returns when every actor runs and has imported what it needs."""
        if self._placed is None:
            return
        if not self._placed.wait(max(0.0, deadline - time.monotonic())):
            raise WorkerError(
                f"Ray has no room for {len(self._ranks)} ranks of {self._room.bundle} in time; "
                "free some or add nodes"
            )
        for index, rank in enumerate(self._ranks):
            bundle = self._room.bundles[rank] if self._room.bundles else index
            self._actors[rank] = self._actor(bundle, rank)
        places = [actor.whereabouts.remote() for actor in self._actors.values()]
        try:
            found = ray.get(places, timeout=max(0.0, deadline - time.monotonic()))
        except ray.exceptions.RayError as error:
            why = exit_detail(str(error))
            raise WorkerError(f"ranks {list(self._ranks)}: an actor does not start: {why}") from error
        self.where = dict(zip(self._actors, found, strict=True))
        self._processes = [
            os.pidfd_open(where.pid) for where in self.where.values() if where.node == here().node
        ]

    def serve(
        self, setup: Callable[[int], RankSetup], endpoints: Callable[[Whereabouts], Endpoints], beat_s: float
    ) -> Mapping[int, Any]:
        """Have every rank load and obey; what Ray gives for each ends when the rank does."""
        return {
            rank: actor.serve.remote(setup(rank), endpoints(self.where[rank]), beat_s)
            for rank, actor in self._actors.items()
        }

    def kill(self, grace_s: float = 0.0) -> None:
        """End them all, also those that are stopped: whoever waits for one of them is released by that.

        On other nodes that is Ray's work, which takes some seconds where a process does not react.
        """
        for actor in self._actors.values():
            ray.kill(actor)
        deadline = time.monotonic() + grace_s
        for process in self._processes:
            if not _has_ended(process, max(0.0, deadline - time.monotonic())):
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                _has_ended(process, 5.0)

    def close(self) -> None:
        """Give everything back."""
        self.kill(grace_s=2.0)
        for process in self._processes:
            os.close(process)
        self._processes = []
        if self._placed is not None and not self._room.bundles:
            remove_placement_group(self._placed)

    def _actor(self, bundle: int, rank: int) -> Any:
        assert self._placed is not None, "there are actors to place"
        return (
            ray.remote(RankHost)
            .options(
                name=f"rank{rank}-{self._name}",
                num_cpus=self._room.num_cpus,
                num_gpus=self._room.num_gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=self._placed, placement_group_bundle_index=bundle
                ),
                max_restarts=0,
                runtime_env={"env_vars": dict(ENVIRONMENT)} if self._room.num_gpus else None,
            )
            .remote()
        )


def _placed(ranks: Sequence[int], room: Room) -> PlacementGroup:
    """The group that there is, which is not given back, or one of their own."""
    if not room.bundles:
        return placement_group([room.bundle] * len(ranks), strategy=room.strategy)
    found = get_current_placement_group()
    assert found is not None, "who names bundles is in a placement group"
    return found


def here() -> Whereabouts:
    """Of this process."""
    node = ray.get_runtime_context().get_node_id()
    return Whereabouts(node=node, host=ray.util.get_node_ip_address(), pid=os.getpid())


def _has_ended(process: int, timeout_s: float) -> bool:
    """Whether a process, given as a file, ends in time."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(int(1000 * timeout_s)))
