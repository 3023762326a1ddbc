"""Groups of real rank actors, wherever they are, told what to do step by step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from actors.messages import Chunk, Order
from actors.rank_actors import Room
from actors.rank_group import GroupPlan, RankGroup
from builders.mapping import Mapping
from tests.actors.engines import (
    NUM_BLOCKS,
    PROMPTS,
    Oracle,
    engine,
    first_step,
    generate,
    next_step,
    oracle,
)

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    yield oracle("llama2-gqa", tmp_path_factory.mktemp("model"))


def plan(engine_dir: Path, **changes: object) -> GroupPlan:
    given = {"engine_dir": engine_dir, "blocks": lambda _free_bytes: NUM_BLOCKS, "kind": "gloo"}
    return GroupPlan(**given | changes)  # type: ignore[arg-type]


def test_every_rank_is_an_actor(wanted: Oracle, tmp_path: Path) -> None:
    """As where the caller has no device."""
    folder = engine(wanted.folder, Mapping(tp_size=2), tmp_path / "engine")
    with RankGroup(plan(folder, inside=False)) as group:
        assert sorted(group.where) == [0, 1]
        assert generate(group) == wanted.greedy


def test_ranks_of_two_nodes(wanted: Oracle, tmp_path: Path) -> None:
    """Orders go over TCP to the one that is not on this node."""
    folder = engine(wanted.folder, Mapping(tp_size=2), tmp_path / "engine")
    with RankGroup(plan(folder, inside=False, room=Room(strategy="STRICT_SPREAD"))) as group:
        assert len({where.node for where in group.where.values()}) == 2
        assert generate(group) == wanted.greedy


def test_how_many_blocks_is_asked_once_it_is_known_what_is_free(wanted: Oracle, tmp_path: Path) -> None:
    """Which is nothing of a GPU here."""
    folder = engine(wanted.folder, Mapping(tp_size=2), tmp_path / "engine")
    asked = []
    with RankGroup(plan(folder, blocks=lambda free_bytes: asked.append(free_bytes) or 17)) as group:
        assert (asked, group.num_blocks) == ([None], 17)


def test_stages_work_on_several_steps_at_once(wanted: Oracle, tmp_path: Path) -> None:
    """Steps are submitted before earlier ones are answered; one samples nothing."""
    folder, (prompt, *_) = engine(wanted.folder, Mapping(pp_size=2), tmp_path / "engine"), PROMPTS
    whole = first_step([prompt]).plan
    begun = msgspec.structs.replace(whole, chunks=(Chunk(0, 0, 4),))
    rest = msgspec.structs.replace(next_step(1, []).plan, chunks=(Chunk(0, 4, len(prompt) - 4, (0,)),))
    given = wanted.greedy[0]
    with RankGroup(plan(folder)) as group:
        for order in (Order(begun), Order(rest), next_step(2, given[:1]), next_step(3, given[1:2])):
            group.submit(order)
        results = [group.collect() for _ in range(4)]
    assert [result.step for result in results] == [0, 1, 2, 3]
    assert [list(result.tokens) for result in results] == [[], given[:1], given[1:2], given[2:3]]
