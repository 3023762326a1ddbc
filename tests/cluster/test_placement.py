"""Plans for placement groups: whatever is planned fits, and what is refused fits nowhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.errors import LayoutError
from cluster.placement import Needs, Node, bundles_of, plan

GB = 10**9


@st.composite
def needs(draw: st.DrawFn) -> Needs:
    tp = draw(st.sampled_from([1, 2, 4]))
    on_gpu = draw(st.booleans())
    return Needs(
        tp_size=tp,
        pp_size=draw(st.integers(1, 3)),
        ep_size=draw(st.sampled_from([one for one in (1, 2, 4) if tp % one == 0])),
        rank_bytes=draw(st.sampled_from([0, 10 * GB, 30 * GB])),
        rank_cpus=draw(st.sampled_from([0.5, 1, 2.5])),
        on_gpu=on_gpu,
        holder_cpus=draw(st.sampled_from([0, 1])),
    )


@st.composite
def nodes(draw: st.DrawFn) -> list[Node]:
    return [
        Node(
            name=f"n{number}",
            free={
                "CPU": draw(st.integers(0, 12)),
                "GPU": draw(st.integers(0, 8)),
                "memory": draw(st.integers(0, 8)) * 20 * GB,
            },
            gpu_bytes=draw(st.sampled_from([None, 20 * GB, 80 * GB])),
        )
        for number in range(draw(st.integers(0, 3)))
    ]


def fits(bundles: Sequence[Mapping[str, float]], names: Sequence[str], there: Sequence[Node]) -> bool:
    """Whether nodes hold what is put on them, bundle by bundle."""
    for node in there:
        on_it = [bundle for bundle, name in zip(bundles, names, strict=True) if name == node.name]
        for resource in {name for bundle in on_it for name in bundle}:
            if sum(bundle.get(resource, 0) for bundle in on_it) > node.free.get(resource, 0):
                return False
    return True


def holds_bytes(wanted: Needs, node: Node) -> bool:
    return not wanted.on_gpu or node.gpu_bytes is None or node.gpu_bytes >= wanted.rank_bytes


def every_way(wanted: Needs, there: Sequence[Node]) -> list[tuple[str, ...]]:
    usable = [node.name for node in there if holds_bytes(wanted, node)]
    bundles = bundles_of(wanted).bundles
    return [names for names in product(usable, repeat=len(bundles)) if fits(bundles, names, there)]


@given(needs(), nodes())
def test_a_plan_is_one_of_the_best_ways_and_a_refusal_means_there_is_none(
    wanted: Needs, there: list[Node]
) -> None:
    ways = every_way(wanted, there)
    if not ways:
        with pytest.raises(LayoutError) as refusal:
            plan(wanted, there)
        assert "\n" not in str(refusal.value) and f"tp_size={wanted.tp_size}" in str(refusal.value)
        return
    found = plan(wanted, there)
    assert found.nodes in ways
    assert len({*found.nodes}) == min(len({*names}) for names in ways)


@given(needs())
def test_bundles_hold_every_rank_and_the_ranks_of_a_stage_are_in_one(wanted: Needs) -> None:
    found = bundles_of(wanted)
    ranks = wanted.tp_size * wanted.pp_size
    assert len(found.bundles) == wanted.pp_size and len(found.of_rank) == ranks
    for stage, bundle in enumerate(found.bundles):
        held = [rank for rank, place in enumerate(found.of_rank) if place == stage]
        assert held == [*range(stage * wanted.tp_size, (stage + 1) * wanted.tp_size)]
        beside = wanted.holder_cpus if stage == 0 else 0
        assert bundle["CPU"] == len(held) * wanted.rank_cpus + beside
        assert bundle.get("GPU", 0) == (len(held) if wanted.on_gpu else 0)
        assert bundle.get("memory", 0) == (0 if wanted.on_gpu else len(held) * wanted.rank_bytes)
    assert found.total("CPU") == ranks * wanted.rank_cpus + wanted.holder_cpus


@pytest.mark.parametrize(
    ("wanted", "there", "why"),
    [
        (Needs(), [], "no nodes"),
        (
            Needs(tp_size=8, on_gpu=True),
            [Node(name="a", free={"CPU": 64, "GPU": 4}), Node(name="b", free={"CPU": 64, "GPU": 4})],
            "a stage needs 8 GPU on one node, and the most that one has free is 4",
        ),
        (
            Needs(on_gpu=True, rank_bytes=40 * GB),
            [Node(name="a", free={"CPU": 8, "GPU": 1}, gpu_bytes=24 * GB)],
            "a rank needs 40,000,000,000 bytes of a GPU, and the most that one has free is 24,000,000,000",
        ),
        (
            Needs(pp_size=3, tp_size=2, on_gpu=True),
            [Node(name="a", free={"CPU": 8, "GPU": 4})],
            "3 stages take 2 CPU and 2 GPU each, and the nodes have room for 2",
        ),
    ],
)
def test_a_refusal_says_what_is_missing(wanted: Needs, there: list[Node], why: str) -> None:
    with pytest.raises(LayoutError, match=why):
        plan(wanted, there)


def test_sizes_that_make_no_layout() -> None:
    with pytest.raises(LayoutError, match="ep_size=3: does not divide tp_size=4"):
        Needs(tp_size=4, ep_size=3)
    with pytest.raises(LayoutError, match="pp_size=0"):
        Needs(pp_size=0)
