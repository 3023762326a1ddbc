"""Groups of real rank actors: Transformers' greedy tokens in every layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from actors.rank_actors import Room
from actors.rank_group import GroupPlan, RankGroup
from actors.step_messages import logits_of, order_of, tokens_of
from builders.mapping import Mapping
from tests.actors.engines import NUM_BLOCKS, PROMPTS, Oracle, decode, engine, generate, oracle, prefill

pytestmark = pytest.mark.usefixtures("local_ray")

LAYOUTS = {
    "1": Mapping(),
    "tp2": Mapping(tp_size=2),
    "pp2": Mapping(pp_size=2),
    "tp2pp2": Mapping(tp_size=2, pp_size=2),
    "ep2": Mapping(tp_size=2, ep_size=2),
}


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Oracle]]:
    yield cache(lambda name: oracle(name, tmp_path_factory.mktemp(name)))


def plan(engine_dir: Path, **changes: object) -> GroupPlan:
    return GroupPlan(**{"engine_dir": engine_dir, "num_blocks": NUM_BLOCKS, "kind": "gloo", **changes})


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        (name, layout)
        for name in ("llama2-gqa", "mixtral")
        for layout in LAYOUTS
        if layout != "ep2" or name == "mixtral"
    ],
)
def test_greedy_tokens_are_those_of_transformers(
    name: str, layout: str, oracles: Callable[[str], Oracle], tmp_path: Path
) -> None:
    wanted = oracles(name)
    with RankGroup(plan(engine(wanted.folder, LAYOUTS[layout], tmp_path / "engine"))) as group:
        assert generate(group) == wanted.greedy


def test_every_rank_is_an_actor(oracles: Callable[[str], Oracle], tmp_path: Path) -> None:
    """As where the caller has no device; logits come back whole where they are wanted."""
    wanted = oracles("llama2-gqa")
    folder = engine(wanted.folder, LAYOUTS["tp2"], tmp_path / "engine")
    with RankGroup(plan(folder, inside=False)) as group:
        assert sorted(group.where) == [0, 1]
        group.submit(order_of(1, *prefill([PROMPTS[0]]), "logits"))
        ours = logits_of(group.collect())
    with torch.no_grad():
        theirs = wanted.model(torch.tensor([PROMPTS[0]])).logits[0, -1:]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_stages_work_on_several_batches_at_once(oracles: Callable[[str], Oracle], tmp_path: Path) -> None:
    """Steps are submitted before earlier ones are answered; some want no answer."""
    wanted = oracles("llama2-gqa")
    first, rest = PROMPTS[0][:4], PROMPTS[0][4:]
    with RankGroup(plan(engine(wanted.folder, LAYOUTS["pp2"], tmp_path / "engine"))) as group:
        group.submit(order_of(1, *prefill([first]), "nothing"))
        for number, token in enumerate(rest, 2):
            group.submit(order_of(number, *decode([token], [len(first) + number - 1]), "tokens"))
        answers = [group.collect() for _ in rest]
    assert [answer.number for answer in answers] == [2, 3, 4]
    assert tokens_of(answers[-1]) == wanted.greedy[0][:1]


def test_ranks_of_two_nodes(oracles: Callable[[str], Oracle], tmp_path: Path) -> None:
    """Orders go over TCP to the one that is not on this node."""
    wanted = oracles("llama2-gqa")
    folder = engine(wanted.folder, LAYOUTS["tp2"], tmp_path / "engine")
    with RankGroup(plan(folder, inside=False, room=Room(strategy="STRICT_SPREAD"))) as group:
        assert len({where.node for where in group.where.values()}) == 2
        assert generate(group) == wanted.greedy
