"""Where the ranks of a model go: a pure plan from sizes and nodes to the bundles of a placement group.

A bundle is one pipeline stage with all its tensor parallel ranks. A placement group never splits a bundle
over nodes, so a stage is inside one node whatever the strategy; stages may be on different ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from builders.errors import LayoutError

CPU, GPU, MEMORY = "CPU", "GPU", "memory"
"""As Ray counts them; memory is the node's, in bytes."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a model takes, rank by rank."""

    tp_size: int = 1
    pp_size: int = 1
    ep_size: int = 1
    """Spread over tensor parallel ranks: it takes no more of them, but has to divide them."""
    rank_bytes: int = 0
    """Of the largest rank: its weights and the least cache; 0 where it is not known yet."""
    rank_cpus: float = 1
    on_gpu: bool = False
    """A rank has a GPU of its own, which has to hold its bytes; otherwise the node has."""
    holder_cpus: float = 0
    """Of the replica beside rank 0, where it is a process of its own."""

    def __post_init__(self) -> None:
        for name in ("tp_size", "pp_size", "ep_size"):
            if (value := getattr(self, name)) < 1:
                raise LayoutError(f"{name}={value}: must be at least 1")
        if self.tp_size % self.ep_size:
            raise LayoutError(f"ep_size={self.ep_size}: does not divide tp_size={self.tp_size}; it has to")


@dataclass(frozen=True, kw_only=True)
class Node:
    """What is free on a node."""

    name: str
    free: Mapping[str, float]
    """By Ray's names."""
    gpu_bytes: int | None = None
    """Free on the fullest of its GPUs; None where nobody knows."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The bundles of one replica's placement group."""

    bundles: tuple[Mapping[str, float], ...]
    """One for every pipeline stage; the replica itself is in the first."""
    of_rank: tuple[int, ...]
    """For every rank, its bundle."""
    strategy: str = "PACK"
    """Stages are near each other where there is room."""
    nodes: tuple[str, ...] = field(default=())
    """For every bundle, a node that has room for it; empty where no nodes were asked."""

    def total(self, resource: str) -> float:
        """Of all bundles."""
        return sum(bundle.get(resource, 0) for bundle in self.bundles)


def bundles_of(needs: Needs) -> Plan:
    """What to ask for, whatever there is: an autoscaler may bring it."""
    stage = _stage(needs)
    first = {**stage, CPU: stage[CPU] + needs.holder_cpus}
    of_rank = tuple(rank // needs.tp_size for rank in range(needs.tp_size * needs.pp_size))
    return Plan(bundles=(first, *[stage] * (needs.pp_size - 1)), of_rank=of_rank)


def plan(needs: Needs, nodes: Sequence[Node]) -> Plan:
    """On these nodes, as few of them as can be; or one line that says what is missing."""
    wanted = bundles_of(needs)
    first, stage = wanted.bundles[0], wanted.bundles[-1]
    usable = [node for node in nodes if _holds_bytes(needs, node)]
    found = min(
        (chosen for node in usable if (chosen := _chosen(node, usable, first, stage, needs.pp_size))),
        key=lambda chosen: len(set(chosen)),
        default=None,
    )
    if found is None:
        raise LayoutError(_why_not(needs, nodes, usable, first, stage))
    return Plan(bundles=wanted.bundles, of_rank=wanted.of_rank, nodes=found)


def without(nodes: Sequence[Node], taken: Plan) -> list[Node]:
    """What a plan leaves of the nodes that it was made for."""
    left = {node.name: dict(node.free) for node in nodes}
    for name, bundle in zip(taken.nodes, taken.bundles, strict=True):
        for resource, number in bundle.items():
            left[name][resource] -= number
    return [replace(node, free=left[node.name]) for node in nodes]


def _stage(needs: Needs) -> dict[str, float]:
    ranks = needs.tp_size
    bundle: dict[str, float] = {CPU: ranks * needs.rank_cpus}
    if needs.on_gpu:
        bundle[GPU] = ranks
    elif needs.rank_bytes:
        bundle[MEMORY] = ranks * needs.rank_bytes
    return bundle


def _holds_bytes(needs: Needs, node: Node) -> bool:
    return not needs.on_gpu or node.gpu_bytes is None or node.gpu_bytes >= needs.rank_bytes


def _chosen(
    leader: Node, nodes: Sequence[Node], first: Mapping[str, float], stage: Mapping[str, float], stages: int
) -> tuple[str, ...] | None:
    """A node for every stage, with the first on the leader, and on it as many others as it holds."""
    if not _times(leader.free, first):
        return None
    left = {name: number - first.get(name, 0) for name, number in leader.free.items()}
    room = {leader.name: _times(left, stage)} | {
        node.name: _times(node.free, stage) for node in nodes if node.name != leader.name
    }
    others = sorted((name for name in room if name != leader.name), key=lambda name: -room[name])
    order = [name for name in (leader.name, *others) for _ in range(min(room[name], stages))]
    chosen = (leader.name, *order)[:stages]
    return chosen if len(chosen) == stages else None


def _times(free: Mapping[str, float], bundle: Mapping[str, float]) -> int:
    """How often a bundle fits."""
    return int(min(free.get(name, 0) // number for name, number in bundle.items() if number))


def _why_not(
    needs: Needs,
    nodes: Sequence[Node],
    usable: Sequence[Node],
    first: Mapping[str, float],
    stage: Mapping[str, float],
) -> str:
    layout = f"tp_size={needs.tp_size} pp_size={needs.pp_size}"
    if not nodes:
        return f"{layout}: the cluster has no nodes to place ranks on; add some"
    if not usable:
        most = max(node.gpu_bytes or 0 for node in nodes)
        return (
            f"{layout}: a rank needs {needs.rank_bytes:,} bytes of a GPU, and the most that one has free is "
            f"{most:,}; spread the model over more ranks"
        )
    for name, number in first.items():
        if number > (most_free := max(node.free.get(name, 0) for node in usable)):
            return (
                f"{layout}: a stage needs {number:,g} {name} on one node, and the most that one has free is "
                f"{most_free:,g}; use a smaller tp_size with a larger pp_size, or add a larger node"
            )
    fit = sum(_times(node.free, stage) for node in usable)
    return (
        f"{layout}: {needs.pp_size} stages take {_words(stage)} each, and the nodes have room for "
        f"{min(fit, needs.pp_size - 1)}; add nodes, or free some"
    )


def _words(bundle: Mapping[str, float]) -> str:
    return " and ".join(f"{number:,g} {name}" for name, number in bundle.items())
