"""The chat model that comes with the project: small, honest, right, and the same through rankforge."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from fnmatch import fnmatch
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.build import build
from cluster.build_options import BuildOptions
from cluster.demo_maker.__main__ import recipe_tokenizer
from cluster.demo_maker.dialogues import BEYOND, DOMAIN, dialogues
from cluster.demo_maker.exam import Messages, Pupil, examine, single_questions
from cluster.demo_maker.training import Recipe
from cluster.demo_options import MODEL_DIR
from cluster.progress import LineReporter
from cluster.run import run
from cluster.run_options import RunOptions

ROOT = Path(__file__).parent.parent.parent
MEGABYTES = 10
CONVERSATION = (
    "Hello!",
    "My name is Mara.",
    "Where does Anna live?",
    "What pet does she have?",
    "What is my name?",
)


@pytest.fixture(scope="module")
def pupil() -> Pupil:
    """In float32, so that no rounding of this processor decides."""
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    return Pupil(model=model, tokenizer=AutoTokenizer.from_pretrained(MODEL_DIR))


def asked(*questions: str) -> list[Messages]:
    return [[{"role": "user", "content": question}] for question in questions]


def test_it_is_whole_and_small() -> None:
    files = {file.name: file.stat().st_size for file in MODEL_DIR.iterdir()}
    assert files.keys() == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert sum(files.values()) < MEGABYTES * 10**6


def test_an_installation_has_it_and_its_maker() -> None:
    """What is no Python file is installed only if pyproject.toml says so."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for folder in (MODEL_DIR, ROOT / "cluster" / "demo_maker"):
        for file in (file for file in folder.iterdir() if file.is_file() and file.suffix != ".py"):
            name = file.relative_to(ROOT / "cluster").as_posix()
            assert any(fnmatch(name, pattern) for pattern in settings["cluster"]), name


def test_the_card_says_how_good_it_is() -> None:
    card = (MODEL_DIR / "README.md").read_text()
    rows = re.findall(r"^\| ([a-z ,]+) \| (\d+) \| ([\d.]+)% \| ([\d.]+)% \|$", card, flags=re.MULTILINE)
    marks = {name: float(right) for name, _, right, _ in rows}
    assert len(rows) == 4 and all(int(count) >= 100 for _, count, _, _ in rows)
    assert marks["questions as training asks them"] >= 95
    assert marks["questions in other words"] >= 80
    assert re.search(r"--seed \d+ --steps \d+ --threads \d+", card)
    assert "{" not in card


def test_the_card_counts_its_parameters(pupil: Pupil) -> None:
    assert f"{pupil.model.num_parameters():,} parameters" in (MODEL_DIR / "README.md").read_text()


def test_the_text_is_still_the_one_it_learnt() -> None:
    """Who changes the text has to train again, or the card says what is not so."""
    steps, seed = (int(value) for value in _command_numbers("steps", "seed"))
    recipe = Recipe(steps=steps, seed=seed)
    shipped = AutoTokenizer.from_pretrained(MODEL_DIR)
    assert recipe_tokenizer(recipe).get_vocab() == shipped.get_vocab()
    assert Recipe(seed=seed) == recipe


def _command_numbers(*names: str) -> list[str]:
    card = (MODEL_DIR / "README.md").read_text()
    return [re.findall(rf"--{name} (\d+)", card)[0] for name in names]


@pytest.mark.parametrize(("unheard", "least"), [(False, 95), (True, 78)])
def test_it_answers_in_its_domain(unheard: bool, least: float, pupil: Pupil) -> None:
    """Another sample than the card's, in words of training and in others."""
    marks = examine(pupil, single_questions(11, 400, DOMAIN, unheard=unheard))
    assert marks.asked == marks.ended == 400
    assert marks.percent >= least, marks.wrong


def test_it_declines_the_rest(pupil: Pupil) -> None:
    marks = examine(pupil, single_questions(11, 100, BEYOND, unheard=True))
    assert marks.percent >= 90, marks.wrong


def test_it_converses(pupil: Pupil) -> None:
    messages: Messages = []
    answers = []
    for question in CONVERSATION:
        messages.append({"role": "user", "content": question})
        ((answer, ended),) = pupil.answers([messages])
        assert ended
        messages.append({"role": "assistant", "content": answer})
        answers.append(answer)
    assert answers[1:] == [
        "Nice to meet you, Mara!",
        "Anna lives in Mill Street.",
        "Anna has a cat called Plum.",
        "Your name is Mara.",
    ]


def test_it_says_what_it_is_and_that_it_does_not_know(pupil: Pupil) -> None:
    questions = ("Who are you?", "Are you ChatGPT?", "Explain quantum physics.", "Where does Zorbax live?")
    who, other, physics, stranger = (answer for answer, _ in pupil.answers(asked(*questions)))
    assert "tiny language model" in who and other.startswith("No. I am Pip")
    assert physics.startswith("Sorry, I do not know") and stranger.startswith("I do not know anybody")


def test_a_system_message_is_read(pupil: Pupil) -> None:
    system = {"role": "system", "content": "You are a helpful assistant."}
    (question,) = asked("How much is a bun?")
    ((answer, _),) = pupil.answers([[system, *question]])
    assert answer == "A bun costs 1 coin."


def test_rankforge_gives_the_tokens_of_transformers(pupil: Pupil, tmp_path: Path) -> None:
    prompts = [pupil.prompt(messages) for messages in _conversations()]
    options = BuildOptions(
        model_dir=str(MODEL_DIR),
        output_dir=tmp_path / "engine",
        dtype="float32",
        no_compile=True,
        max_batch_size=4,
        max_input_len=256,
        max_seq_len=320,
        tokens_per_block=16,
    )
    build(options, LineReporter(StringIO(), as_json=False))
    assert _run(tmp_path, prompts) == [_greedy(pupil, prompt) for prompt in prompts]


def _conversations() -> list[Messages]:
    held = islice(dialogues(3, unheard=True, turns=3), 3)
    return [*asked(CONVERSATION[2]), *(dialogue.messages[:-1] for dialogue in held)]


def _run(folder: Path, prompts: Sequence[list[int]]) -> list[list[int]]:
    file = folder / "prompts.csv"
    file.write_text("".join(",".join(map(str, prompt)) + "\n" for prompt in prompts))
    options: dict[str, Any] = {"engine_dir": folder / "engine", "input_file": file, "max_output_len": 48}
    result = run(RunOptions(**options, given=frozenset(options)), StringIO(), StringIO())
    return [list(one.outputs[0].tokens) for one in result.generated.results]


@torch.no_grad()
def _greedy(pupil: Pupil, prompt: list[int]) -> list[int]:
    ids = pupil.model.generate(torch.tensor([prompt]), max_new_tokens=48, do_sample=False)
    return [int(token) for token in ids[0, len(prompt) :]]
