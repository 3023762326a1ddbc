"""Ranks on Ray, in every layout: what everyone gets in company is what Transformers gives them alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from actors.open_generator import GeneratorOptions, open_generator
from actors.rank_actors import Room
from builders.errors import EngineError
from builders.mapping import Mapping
from tests.actors.engines import small
from tests.actors.scenario import NUM_BLOCKS, Scenario
from tests.actors.subjects import FAMILIES, Subject

pytestmark = pytest.mark.usefixtures("local_ray")

LAYOUTS = {
    "tp2": Mapping(tp_size=2),
    "pp2": Mapping(pp_size=2),
    "tp2pp2": Mapping(tp_size=2, pp_size=2),
    "ep2": Mapping(tp_size=2, ep_size=2),
}
CASES = [
    *((name, "tp2", 0) for name in FAMILIES),
    *((name, "pp2", 0) for name in ("gpt2", "llama2-gqa", "mixtral")),
    *((name, "tp2pp2", 0) for name in ("gpt_bigcode-multi-query", "llama2-gqa", "mixtral")),
    *((name, "ep2", 0) for name in ("mixtral", "dbrx")),
    ("llama2-gqa", "tp2", 3),
    ("llama2-gqa", "pp2", 3),
]
"""Family, layout, tokens to guess. Every family is in test_generator.py with one rank."""


@pytest.mark.parametrize(("name", "layout", "draft_tokens"), CASES)
def test_everyone_gets_what_transformers_gives(
    name: str, layout: str, draft_tokens: int, subjects: Callable[[str], Subject], tmp_path: Path
) -> None:
    subject = subjects(name)
    folder = subject.engine(LAYOUTS[layout], tmp_path / "engine")
    options = GeneratorOptions(num_blocks=NUM_BLOCKS, draft_tokens=draft_tokens)
    with open_generator(folder, options) as generator:
        scenario = Scenario(generator, subject.wishes)
        scenario.run()
    scenario.check(subject.model)
    scenario.check_variety()


@pytest.mark.parametrize(
    ("room", "what"), [(Room(num_gpus=1), "2 GPUs, and there are 0"), (Room(num_cpus=99), "99 CPUs, and")]
)
def test_a_machine_that_is_too_small(room: Room, what: str, tmp_path: Path) -> None:
    """Nothing is waited for that will not come: this Ray does not grow."""
    folder = small(tmp_path, Mapping(tp_size=2))
    with pytest.raises(EngineError, match=f": its ranks take {what}"):
        open_generator(folder, GeneratorOptions(num_blocks=NUM_BLOCKS, room=room))
