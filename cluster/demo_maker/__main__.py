"""`python -m cluster.demo_maker --output_dir DIR`: make the demo's model, examine it, write it."""

from __future__ import annotations

import json
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from cluster.demo_maker.card import Report, card, how_made
from cluster.demo_maker.dialogues import BEYOND, DOMAIN, dialogues
from cluster.demo_maker.exam import Pupil, converse, examine, single_questions
from cluster.demo_maker.options import MakeOptions
from cluster.demo_maker.tokens import learn_tokenizer
from cluster.demo_maker.training import Log, Recipe, new_model, train
from cluster.options import command

app = typer.Typer(pretty_exceptions_enable=False)

_TOKENIZER_DIALOGUES = 4000
_EXAM_SEED = 1_000_003
_CARD = "README.md"


@command(app, MakeOptions)
def make(options: MakeOptions) -> None:
    """Train the tiny chat model of the demo on text that is made on the spot."""
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    recipe = Recipe(
        seed=options.seed,
        steps=options.steps,
        learning_rate=options.learning_rate,
        practice=options.practice,
    )
    make_model(recipe, options.output_dir, start=options.start, least=options.least)


def make_model(
    recipe: Recipe, output: Path, *, least: float, start: Path | None = None, questions: int = 600
) -> None:
    """The folder changes only if the model is good enough."""
    begun, processor = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as draft:
        _train(recipe, start, Path(draft))
        minutes = (time.monotonic() - begun) / 60, (time.process_time() - processor) / 60
        report = _report(recipe, start, Path(draft), minutes, questions)
        _check(report, least)
        _publish(Path(draft), output, card(report))


def _train(recipe: Recipe, start: Path | None, folder: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(start) if start else recipe_tokenizer(recipe)
    model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32) if start else new_model(recipe)
    train(model, recipe, tokenizer, Log())
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    words = folder / "tokenizer.json"
    words.write_text(json.dumps(json.loads(words.read_text()), separators=(",", ":"), ensure_ascii=False))


def recipe_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """From the first dialogues that the model is trained on."""
    first = islice(dialogues(recipe.seed), _TOKENIZER_DIALOGUES)
    return learn_tokenizer(first, recipe.vocab_size, recipe.longest)


def _report(
    recipe: Recipe, start: Path | None, folder: Path, minutes: tuple[float, float], questions: int
) -> Report:
    """Examines what was saved, as anybody loads it."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    pupil = Pupil(model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
    return Report(
        recipe=recipe,
        before=how_made((start / _CARD).read_text()) if start else "",
        threads=torch.get_num_threads(),
        minutes=minutes[0],
        processor_minutes=minutes[1],
        parameters=model.num_parameters(),
        heard=examine(pupil, single_questions(_EXAM_SEED, questions // 2, DOMAIN, unheard=False)),
        paraphrased=examine(pupil, single_questions(_EXAM_SEED, questions, DOMAIN, unheard=True)),
        declined=examine(pupil, single_questions(_EXAM_SEED, questions // 3, BEYOND, unheard=True)),
        talks=converse(pupil, _EXAM_SEED, count=questions // 10, turns=8),
    )


def _check(report: Report, least: float) -> None:
    for line in report.lines:
        print(line)
    for exchange, said in (*report.paraphrased.wrong, *report.declined.wrong):
        print(f"{exchange.kind}: {exchange.question} -> {said}")
    percent = report.paraphrased.percent
    if percent < least:
        raise SystemExit(
            f"{percent:.1f}% of the questions in other words: under {least}%; train for more --steps"
        )


def _publish(draft: Path, output: Path, readme: str) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for file in draft.iterdir():
        (output / file.name).write_bytes(file.read_bytes())
    (output / _CARD).write_text(readme)


if __name__ == "__main__":
    app()
