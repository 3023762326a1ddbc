"""One rank without Ray: what everyone gets in company is what Transformers gives them alone."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.generator import Generator, Pace
from actors.messages import Request, StepResult
from actors.open_generator import GeneratorOptions, open_generator, planned
from actors.rank_worker import RankSetup
from actors.ranks import SoloRank
from actors.sampling_params import SamplingParams
from builders.engine_manifest import read_engine
from builders.errors import UserError
from builders.mapping import Mapping
from tests.actors.engines import small
from tests.actors.scenario import LIMITS, NUM_BLOCKS, Scenario
from tests.actors.subjects import FAMILIES, Subject
from tests.actors.wishes import EOS, prompt_of, texts_of

Subjects = Callable[[str], Subject]


def opened(folder: Path, *, draft_tokens: int = 0) -> Generator:
    return open_generator(folder, GeneratorOptions(num_blocks=NUM_BLOCKS, draft_tokens=draft_tokens))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("draft_tokens", [0, 3])
def test_everyone_gets_what_transformers_gives(
    name: str, draft_tokens: int, subjects: Subjects, tmp_path: Path
) -> None:
    subject = subjects(name)
    with opened(subject.engine(Mapping(), tmp_path / "engine"), draft_tokens=draft_tokens) as generator:
        scenario = Scenario(generator, subject.wishes)
        scenario.run()
    scenario.check(subject.model)
    scenario.check_variety()


@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize("draft_tokens", [0, 3])
def test_steps_ahead_of_results(steps: int, draft_tokens: int, subjects: Subjects, tmp_path: Path) -> None:
    """As on a GPU: what a step has sampled is read after the next one has begun."""
    subject = subjects("llama2-gqa")
    with opened(subject.engine(Mapping(), tmp_path / "engine"), draft_tokens=draft_tokens) as generator:
        generator._pace = Pace(steps=steps, fed=False)
        scenario = Scenario(generator, subject.wishes)
        scenario.run()
    scenario.check(subject.model)
    scenario.check_variety()


@pytest.mark.parametrize("seed", range(12))
def test_any_company(seed: int, subjects: Subjects, tmp_path: Path) -> None:
    """Whoever comes, whenever, however few the blocks."""
    subject, chance = subjects("llama2-gqa"), random.Random(seed)
    company = chance.sample(subject.wishes, chance.randint(3, len(subject.wishes)))
    wishes = [replace(wish, joins=chance.randint(0, 30)) for wish in company]
    folder = subject.engine(Mapping(), tmp_path / "engine")
    options = GeneratorOptions(num_blocks=chance.randint(14, 40), draft_tokens=chance.choice((0, 3)))
    with open_generator(folder, options) as generator:
        generator._pace = Pace(steps=chance.randint(1, 3), fed=False)
        scenario = Scenario(generator, wishes)
        scenario.run()
    scenario.check(subject.model)


@dataclass
class Interrupted(Scenario):
    """Now and then all that is left is what was told."""

    opening: Callable[[], Generator] = field(kw_only=True)
    chance: random.Random = field(kw_only=True)
    deaths: int = 0

    def _step(self) -> None:
        super()._step()
        if self.chance.random() < 0.1:
            remaining = self.generator.remaining()
            self.generator.close()
            self.generator = self.opening()
            for request in remaining:
                self.generator.add(request)
            self.deaths += 1


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_others_go_on(steps: int, seed: int, subjects: Subjects, tmp_path: Path) -> None:
    """Whatever was under way, and however far it was: texts, draws, penalties, scores, searches."""
    subject = subjects("llama2-gqa")
    folder = subject.engine(Mapping(), tmp_path / "engine")

    def opening() -> Generator:
        generator = opened(folder, draft_tokens=3 * (seed % 2))
        generator._pace = Pace(steps=steps, fed=False)
        return generator

    scenario = Interrupted(opening(), subject.wishes, opening=opening, chance=random.Random(seed))
    scenario.run()
    scenario.generator.close()
    scenario.check(subject.model)
    assert scenario.deaths > 3


def test_without_a_seed_the_draw_goes_on(subjects: Subjects, tmp_path: Path) -> None:
    """It is the one that the first has drawn, wherever the text is cut."""
    folder = subjects("llama2-gqa").engine(Mapping(), tmp_path / "engine")
    request, texts = Request("r", (5, 6), SamplingParams(max_tokens=20, ignore_eos=True)), []
    with opened(folder) as first:
        first.add(request)
        (begun,) = first.remaining()
        told = [one for _ in range(7) for one in first.step()]
        (rest,) = first.remaining()
    for one in (begun, rest):
        with opened(folder) as other:
            other.add(one)
            news = told * (one is rest) + [one for _ in range(30) for one in other.step()]
            texts.append([token for one in news for token in one.tokens])
    assert texts[0] == texts[1] and len(texts[0]) == 20


def test_right_guesses_save_steps(subjects: Subjects, tmp_path: Path) -> None:
    subject, prompt = subjects("llama2-gqa"), prompt_of(2, 1)
    params = SamplingParams(max_tokens=40, temperature=0)
    folder, steps = subject.engine(Mapping(), tmp_path / "engine"), {}
    for draft_tokens in (0, 4):
        with opened(folder, draft_tokens=draft_tokens) as generator:
            generator.add(Request("r", tuple(prompt), params))
            found: list[int] = []
            while generator.has_work:
                found += [token for one in generator.step() for token in one.tokens]
                steps[draft_tokens] = steps.get(draft_tokens, 0) + 1
        assert tuple(found) == texts_of(subject.model, prompt, params)[0]
    assert steps[4] < 0.75 * steps[0]


def test_what_is_known_of_an_engine(subjects: Subjects, tmp_path: Path) -> None:
    folder = subjects("llama2-gqa").engine(Mapping(), tmp_path / "engine")
    with open_generator(folder) as generator:
        assert (generator.limits, generator.eos) == (LIMITS, {EOS})
        assert generator.manifest.checkpoint.spec.family == "llama"
        assert not generator.has_work and generator.step() == []


class Forgetful(SoloRank):
    """Leaves out what searches decide."""

    def collect(self) -> StepResult:
        return msgspec.structs.replace(super().collect(), beams=())


def test_nobody_waits_for_what_will_not_come(tmp_path: Path) -> None:
    folder = small(tmp_path, Mapping())
    ranks = Forgetful(RankSetup(engine_dir=folder, rank=0, num_blocks=NUM_BLOCKS))
    with planned(ranks, NUM_BLOCKS, read_engine(folder), ()) as generator:
        generator.add(Request("r", (5, 6), SamplingParams(num_beams=2)))
        with pytest.raises(AssertionError, match="whoever waits for nothing is planned"):
            for _ in range(10):
                generator.step()


def test_a_closed_generator_has_no_engine(tmp_path: Path) -> None:
    """Nor is anything under way; closing it again does nothing."""
    generator = opened(small(tmp_path, Mapping()))
    ranks = generator._ranks
    assert isinstance(ranks, SoloRank)
    engine = weakref.ref(ranks._worker._engine)
    generator._pace = Pace(steps=2, fed=False)
    generator.add(Request("r", (5, 6), SamplingParams(max_tokens=20)))
    generator.step()
    generator.close()
    generator.close()
    assert engine() is None and not ranks._under_way


def test_without_a_seed_texts_differ(subjects: Subjects, tmp_path: Path) -> None:
    folder = subjects("llama2-gqa").engine(Mapping(), tmp_path / "engine")
    texts: dict[str, list[int]] = {"a": [], "b": []}
    with open_generator(folder) as generator:
        for name in texts:
            generator.add(Request(name, (5, 6), SamplingParams(max_tokens=20)))
        while generator.has_work:
            for one in generator.step():
                texts[one.request] += one.tokens
    assert texts["a"] != texts["b"]


def test_a_name_is_used_again_while_its_cancelled_search_runs(subjects: Subjects, tmp_path: Path) -> None:
    """What the old search's last step has found is not the new one's."""
    subject = subjects("llama2-gqa")
    (wish,) = [wish for wish in subject.wishes if wish.request.id == "beams"]
    with opened(subject.engine(Mapping(), tmp_path / "engine")) as generator:
        generator._pace = Pace(steps=2, fed=False)
        generator.add(Request("company", (9,), SamplingParams(max_tokens=40, ignore_eos=True)))
        generator.add(Request("beams", (3, 4, 5), wish.request.params))
        for _ in range(7):
            generator.step()
        generator.cancel("beams")
        generator.add(wish.request)
        news = [one for _ in range(40) for one in generator.step()]
        generator.check_integrity()
    assert [one.tokens for one in news if one.request == "beams"] == wish.texts


REFUSED = [
    ((1,) * 33, {}, "prompt of 33 tokens: must have from 1 to 32"),
    ((5, 101), {}, "prompt: tokens must be from 0 to 100"),
    ((5, -1), {}, "prompt: tokens must be from 0 to 100"),
    ((5,), {"stop_token_ids": (101,)}, "stop_token_ids: tokens must be from 0 to 100"),
    ((5,), {"logit_bias": {101: 1.0}}, "logit_bias: tokens must be from 0 to 100"),
]


@pytest.mark.parametrize(("prompt", "params", "words"), REFUSED)
def test_what_can_never_be_done_disturbs_nobody(
    prompt: tuple[int, ...], params: dict[str, Any], words: str, subjects: Subjects, tmp_path: Path
) -> None:
    subject = subjects("llama2-gqa")
    (wish,) = [wish for wish in subject.wishes if wish.request.id == "short"]
    with opened(subject.engine(Mapping(), tmp_path / "engine")) as generator:
        with pytest.raises(UserError, match=words):
            generator.add(Request("short", prompt, SamplingParams(**params)))
        assert not generator.has_work
        scenario = Scenario(generator, [wish])
        scenario.run()
    scenario.check(subject.model)
