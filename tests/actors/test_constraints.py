"""Texts that are held to a grammar, in company: what Transformers gives where nothing else is allowed."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actors.generator import Generator, Pace
from actors.grammar import Grammar
from actors.messages import Request, Tokens
from actors.open_generator import GeneratorOptions, open_generator
from actors.sampling_params import SamplingParams
from builders.errors import UserError
from builders.mapping import Mapping
from tests.actors.engines import small
from tests.actors.grammars import PATTERNS, Held, company, held
from tests.actors.scenario import Scenario
from tests.actors.test_generator import Interrupted
from tests.actors.wishes import EOS, Wish, prompt_of, wish_of
from tests.cuda_engines import here

FEW_BLOCKS = 9
"""A fifth of what those take that run at once."""


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Held:
    return held(tmp_path_factory.mktemp("held"), Mapping())


@pytest.fixture(scope="module")
def wishes(subject: Held) -> tuple[Wish, ...]:
    return company(subject)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("draft_tokens", [0, 3])
def test_everyone_gets_what_transformers_gives(
    steps: int, draft_tokens: int, subject: Held, wishes: tuple[Wish, ...]
) -> None:
    options = GeneratorOptions(num_blocks=FEW_BLOCKS, draft_tokens=draft_tokens)
    with open_generator(subject.engine, options) as generator:
        generator._pace = Pace(steps=steps, fed=False)
        scenario = Scenario(generator, wishes)
        scenario.run()
    scenario.check(subject.model)
    admitted = [one for plan in scenario.plans for one in plan.admitted if one.params.grammar]
    assert any(len(one.tokens) > 4 * one.num_prompt for one in admitted), "a text was interrupted"


@pytest.fixture(scope="module")
def on_gpu(tmp_path_factory: pytest.TempPathFactory) -> Held:
    return held(tmp_path_factory.mktemp("held"), Mapping(), target=here())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("draft_tokens", [0, 3])
def test_everyone_gets_the_same_on_a_gpu(draft_tokens: int, on_gpu: Held) -> None:
    """Steps are ahead of results there, graphs hold some of them, and a kernel draws."""
    subject = on_gpu
    options = GeneratorOptions(num_blocks=FEW_BLOCKS, draft_tokens=draft_tokens)
    with open_generator(subject.engine, options) as generator:
        scenario = Scenario(generator, company(subject))
        scenario.run()
    scenario.check(subject.model)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_may_come_next(pattern: str, subject: Held) -> None:
    """By trial: all that fits, or what fits and is how the tokenizer would write it."""
    chance, plain = random.Random(0), SamplingParams(temperature=0)
    for _ in range(20):
        text: tuple[int, ...] = ()
        while len(text) < 14 and EOS not in text:
            fitting, allowed = subject.fitting(pattern, text), subject.allowed(pattern, text, plain)
            assert set(allowed) - {EOS} <= set(fitting)
            begins = {subject.text((token,))[0] for token in fitting}
            assert len(begins) == 1 or {EOS, *allowed} == {EOS, *fitting}
            text += (chance.choice(allowed),)


@pytest.mark.parametrize("seed", range(6))
def test_any_company(seed: int, subject: Held, wishes: tuple[Wish, ...]) -> None:
    """Whoever comes, whenever, however few the blocks."""
    chance = random.Random(seed)
    some = [replace(one, joins=chance.randint(0, 20)) for one in chance.sample(wishes, chance.randint(3, 9))]
    with open_generator(subject.engine, GeneratorOptions(num_blocks=chance.randint(14, 30))) as generator:
        generator._pace = Pace(steps=chance.randint(1, 3), fed=False)
        scenario = Scenario(generator, some)
        scenario.run()
    scenario.check(subject.model)


@pytest.mark.parametrize("seed", range(3))
def test_others_go_on(seed: int, subject: Held, wishes: tuple[Wish, ...]) -> None:
    """Where ranks die, their successors know of a text what was told of it, and nothing of its grammar."""

    def opening() -> Generator:
        generator = open_generator(subject.engine, GeneratorOptions(num_blocks=20))
        generator._pace = Pace(steps=1 + seed % 2, fed=False)
        return generator

    scenario = Interrupted(opening(), wishes, opening=opening, chance=random.Random(seed))
    scenario.run()
    scenario.generator.close()
    scenario.check(subject.model)
    assert scenario.deaths > 1


def test_others_decode_in_every_step(subject: Held) -> None:
    """Of those that wait for a grammar nobody else knows."""
    free = wish_of(subject.model, "free", prompt_of(2, 5), 0, max_tokens=20)
    with open_generator(subject.engine, GeneratorOptions(num_blocks=40)) as generator:
        generator._pace = Pace(steps=2, fed=False)
        generator.add(Request("held", (5, 6), params_of("regex", "[a-z ]{30}", max_tokens=20)))
        scenario = Scenario(generator, [free])
        scenario.run()
    assert sum(bool(plan.decode) for plan in scenario.plans) == len(free.texts[0]) - 1
    assert any(plan.decode and plan.runs for plan in scenario.plans)


def params_of(kind: str, text: str, **changes: object) -> SamplingParams:
    grammar = Grammar(kind=kind, text=text)  # type: ignore[arg-type]
    return SamplingParams(temperature=0, grammar=grammar, **changes)  # type: ignore[arg-type]


PROPERTIES = {f"p{n}": {"const": n} for n in range(2500)}
TOO_MUCH = json.dumps({"type": "object", "properties": PROPERTIES})


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        ("regex", "(", "regex: .*unclosed group"),
        ("json_schema", TOO_MUCH, "json_schema: .*max is 2000"),
        ("json_schema", '{"multipleOf": 1e9, "type": "number"}', "json_schema: multipleOf: 1000000000 units"),
    ],
)
def test_a_grammar_that_cannot_be_followed_ends_its_text_alone(
    kind: str, text: str, why: str, subject: Held
) -> None:
    """Ranks check again what is checked before: they go on with everyone else's."""
    free = wish_of(subject.model, "free", prompt_of(2, 5), 0, max_tokens=12)
    with open_generator(subject.engine, GeneratorOptions(num_blocks=40)) as generator:
        generator.add(Request("wrong", (5, 6), params_of(kind, text)))
        scenario = Scenario(generator, [free])
        scenario.run()
    scenario.check(subject.model)
    last = scenario.news["wrong", 0][-1]
    assert last.finish == "stop" and last.usage and last.failure
    assert re.match(why, last.failure)


def test_an_engine_without_a_tokenizer(tmp_path: Path) -> None:
    news: list[Tokens] = []
    with open_generator(small(tmp_path, Mapping()), GeneratorOptions(num_blocks=FEW_BLOCKS)) as generator:
        generator.add(Request("r", (5, 6), params_of("regex", "a+")))
        while generator.has_work:
            news += generator.step()
    assert [one.failure for one in news] == ["grammar: the engine has no tokenizer; build it with one"]


def test_not_with_beams() -> None:
    with pytest.raises(UserError, match="grammar: not with num_beams=2; use num_beams=1"):
        params_of("regex", "a+", num_beams=2)
