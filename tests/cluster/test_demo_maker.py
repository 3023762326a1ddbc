"""The demo model's maker: text by seed, questions kept from training, a tokenizer, a loss that falls."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

import pytest
import torch
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from cluster.demo_maker.__main__ import make_model
from cluster.demo_maker.dialogues import DOMAIN, FACTUAL, Dialogue, Speaker, dialogues
from cluster.demo_maker.exam import single_questions
from cluster.demo_maker.facts import FACTS, listed, plural, with_article
from cluster.demo_maker.kinds import KINDS, Exchange, Kind, Wording, read_kinds
from cluster.demo_maker.tokens import SPECIAL, learn_tokenizer, sequenced
from cluster.demo_maker.town import PEOPLE, PLACES
from cluster.demo_maker.training import Recipe, batches, new_model, train

TINY = Recipe(
    steps=12, batch_tokens=512, row_tokens=64, longest=128, long_every=3, vocab_size=400, hidden_size=32,
    intermediate_size=48, layers=1, heads=2, kv_heads=1, learning_rate=0.02, bfloat16=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return learn_tokenizer(first(300), TINY.vocab_size, TINY.longest)


def first(count: int, seed: int = 0, **settings: int) -> list[Dialogue]:
    return list(islice(dialogues(seed, **settings), count))  # type: ignore[arg-type]


def exchanges(found: Iterable[Dialogue]) -> list[Exchange]:
    return [exchange for dialogue in found for exchange in dialogue.exchanges]


def test_a_seed_makes_a_text() -> None:
    assert first(50) == first(50)
    assert first(50) != first(50, seed=1)


def plain(sentence: str) -> str:
    """Without what careless typing loses."""
    return re.sub(r"[^a-z0-9{}_+' -]", "", sentence.lower()).strip()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_no_wording_of_the_exam_is_one_of_training(kind: Kind) -> None:
    heard, later, unheard, unheard_later = (set(map(plain, kind.wordings[which])) for which in Wording)
    assert not unheard & heard and not unheard_later & later
    assert heard or later


def test_training_never_asks_what_the_exam_asks() -> None:
    asked = single_questions(7, 300, DOMAIN, unheard=True)
    assert len(asked) == 300 == len({one.question for one in asked})
    trained = {(one.kind, plain(one.question)) for one in exchanges(first(3000))}
    assert len(trained) > 4000
    assert not {(one.kind, plain(one.question)) for one in asked} & trained


def test_careless_typing_is_among_what_is_asked() -> None:
    asked = " ".join(one.question for one in exchanges(first(3000)))
    for form in (
        r"Where does [A-Z]",
        r"Where [A-Z]\w+ (live|work)",
        r"where does [a-z]",
        r"Hello! W",
        r"Who's the",
    ):
        assert re.search(form, asked), form


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_question_has_one_answer(kind: Kind) -> None:
    draw, answers = Random(0), dict[str, str]()
    facts = FACTS[kind.facts]
    for which in (one for one in Wording if kind.wordings[one]):
        for _ in range(200):
            exchange = kind.ask(draw, {"value": "red"} | facts(draw), which)
            assert not re.search(r"[{}|~<>]", exchange.question + exchange.answer)
            if which in (Wording.HEARD, Wording.UNHEARD):
                assert answers.setdefault(exchange.question.lower(), exchange.answer) == exchange.answer


def test_lines_are_read_by_their_marks() -> None:
    head = "# said\n== person name\nhome = In {street}.\n"
    (kind,) = read_kinds(head + "  Where? | Whereabouts?\n  ~ the place\n  > And she?\n  ! Address?")
    assert (kind.name, kind.facts, kind.about, kind.answer) == ("home", "person", "name", "In {street}.")
    assert kind.wordings[Wording.HEARD][:3] == ["Where?", "Whereabouts?", "Tell me the place."]
    assert kind.wordings[Wording.LATER] == ["And she?"]
    assert "Address?" in kind.wordings[Wording.UNHEARD]
    with pytest.raises(ValueError, match="!!"):
        read_kinds(head + "  !! Where?")


def test_sums_are_right() -> None:
    speaker = Speaker(draw=Random(3))
    (add, take) = (next(kind for kind in FACTUAL if kind.name == name) for name in ("sum", "difference"))
    for kind, sign in ((add, 1), (take, -1)):
        for _ in range(50):
            one, other, result = map(int, re.findall(r"\d+", speaker.asked(kind).answer))
            assert one + sign * other == result


def test_the_town_has_no_contradiction() -> None:
    assert {person.place for person in PEOPLE} == {place.place for place in PLACES}
    for names in ("name", "job", "place", "pet_name"):
        assert len({getattr(person, names) for person in PEOPLE}) == len(PEOPLE)
    wares = [ware for place in PLACES for ware in place.prices]
    assert len(set(wares)) == len(wares)


def test_pronouns_are_of_whom_was_spoken() -> None:
    speaker = Speaker(draw=Random(5))
    later = {wording for kind in KINDS for wording in kind.wordings[Wording.LATER]}
    seen = 0
    for _ in range(2000):
        before, exchange = dict(speaker.facts), speaker.next()
        if "name" in before and exchange.question in {one.format(**before) for one in later if "{" in one}:
            assert before["name"] in exchange.answer
            seen += 1
    assert seen > 50


def test_what_users_say_of_themselves_is_remembered() -> None:
    speaker, told, seen = Speaker(draw=Random(2)), "", 0
    for _ in range(200):
        exchange = speaker.of_themselves()
        if exchange.kind == "told name":
            told = exchange.answer.removeprefix("Nice to meet you, ").removesuffix("!")
            assert told in exchange.question
        if exchange.kind in ("my name", "no name"):
            assert exchange.answer == (f"Your name is {told}." if told else "You have not told me your name.")
            seen += 1
    assert seen > 20


def test_words_as_english_has_them() -> None:
    assert [with_article("owl"), with_article("cat")] == ["an owl", "a cat"]
    assert [plural("diary"), plural("sandwich"), plural("bun")] == ["diaries", "sandwiches", "buns"]
    assert [listed(["a"]), listed(["a", "b", "c"])] == ["a", "a, b and c"]


def test_the_chat_template_makes_what_is_trained_on(tokenizer: PreTrainedTokenizerFast) -> None:
    found = first(100, seed=4)
    assert any(dialogue.system for dialogue in found)
    for dialogue in found:
        text = str(tokenizer.apply_chat_template(dialogue.messages, tokenize=False))
        ids = list(sequenced(tokenizer, dialogue).ids)
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.decode(ids) == text


def test_answers_and_their_ends_count_in_full(tokenizer: PreTrainedTokenizerFast) -> None:
    (dialogue,) = first(1, turns=2)
    one = sequenced(tokenizer, dialogue)
    counted = [token for token, weight in zip(one.ids, one.weights, strict=True) if weight == 1]
    assert tokenizer.decode(counted) == "".join(f"{each.answer}<|end|>" for each in dialogue.exchanges)


def test_the_template_refuses_other_roles(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TemplateError, match="user and assistant"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}])


def test_a_tokenizer_is_learnt_the_same_again(tokenizer: PreTrainedTokenizerFast) -> None:
    again = learn_tokenizer(first(300), TINY.vocab_size, TINY.longest)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == [0, 1, 2, 3]
    assert tokenizer.decode(tokenizer.encode("naïve 猫", add_special_tokens=False)) == "naïve 猫"


def test_rows_begin_with_a_dialogue(tokenizer: PreTrainedTokenizerFast) -> None:
    shapes = []
    for ids, weights in islice(batches(TINY, tokenizer), 3):
        assert ids[:, 0].eq(0).all() and ids.shape == weights.shape
        shapes.append(tuple(ids.shape))
    assert shapes == [(8, 65), (8, 65), (4, 129)]


def test_training_lowers_the_loss_the_same_way_again(tokenizer: PreTrainedTokenizerFast) -> None:
    heard: list[list[float]] = [[], []]
    models = [new_model(TINY), new_model(TINY)]
    for model, one in zip(models, heard, strict=True):
        train(model, TINY, tokenizer, lambda _, loss, one=one: one.append(loss))  # type: ignore[misc]
    assert len(heard[0]) == TINY.steps
    assert heard[0][-1] < 0.8 * heard[0][0]
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_model_is_made_as_a_folder_with_its_card(tmp_path: Path) -> None:
    make_model(TINY, tmp_path / "model", least=0, questions=12)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    found = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.bfloat16 and model.config.vocab_size == len(found) == TINY.vocab_size
    assert found.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False).endswith("<|end|>")
    text = (tmp_path / "model" / "README.md").read_text()
    assert f"--seed 0 --steps {TINY.steps}" in text and "questions in other words | 12 |" in text


def test_a_model_is_gone_on_with(tmp_path: Path) -> None:
    make_model(TINY, tmp_path / "first", least=0, questions=12)
    more = replace(TINY, seed=1, steps=2, practice=0.5)
    make_model(more, tmp_path / "second", start=tmp_path / "first", least=0, questions=12)
    words = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("first", "second")]
    first, second = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("first", "second"))
    distances = [(a - b).abs().max() for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert words[0] == words[1] and 0 < max(distances) < 0.1
    text = (tmp_path / "second" / "README.md").read_text()
    commands = re.findall(r"^python .*$", text, flags=re.MULTILINE)
    assert len(commands) == 2 and "--start" not in commands[0]
    assert "--start" in commands[1] and "--practice 0.5" in commands[1]


def test_practice_looks_back_and_adds() -> None:
    often, seldom = (
        sum(
            one.kind in ("my name", "sum", "repeat")
            for one in exchanges(islice(dialogues(0, practice=x), 200))
        )
        for x in (0.5, 0.0)
    )
    assert often > 2 * seldom


def test_a_model_that_knows_nothing_replaces_none(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"in other words: under 50%; train for more --steps"):
        make_model(TINY, tmp_path / "model", least=50, questions=12)
    assert not (tmp_path / "model").exists()
