"""Texts that are held to a grammar by ranks on Ray: each that chooses compiles it, and all choose alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.open_generator import GeneratorOptions, open_generator
from builders.mapping import Mapping
from tests.actors.grammars import company, held
from tests.actors.scenario import Scenario

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.mark.parametrize("mapping", [Mapping(tp_size=2), Mapping(pp_size=2)], ids=["tp2", "pp2"])
def test_everyone_gets_what_transformers_gives(mapping: Mapping, tmp_path: Path) -> None:
    subject = held(tmp_path, mapping)
    with open_generator(subject.engine, GeneratorOptions(num_blocks=12)) as generator:
        scenario = Scenario(generator, company(subject))
        scenario.run()
    scenario.check(subject.model)
