"""The model card, with the numbers of the exam."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from cluster.demo_maker.exam import Marks
from cluster.demo_maker.town import ASSISTANT, TOWN
from cluster.demo_maker.training import Recipe

_FOLDER = "cluster/demo_model"
_TEMPLATE = Path(__file__).with_name("card.md")


@dataclass(frozen=True, kw_only=True)
class Report:
    """How a model was made, and what it got right."""

    recipe: Recipe
    before: str
    """How the model was made that it started from; empty where there was none."""
    threads: int
    minutes: float
    """By the clock."""
    processor_minutes: float
    parameters: int
    heard: Marks
    """Questions as training asks them."""
    paraphrased: Marks
    """Questions of its domain in wordings that training never saw."""
    declined: Marks
    """Such questions beyond its domain."""
    talks: Marks
    """Every answer of whole dialogues in such wordings."""

    @property
    def lines(self) -> Sequence[str]:
        """The table."""
        rows = (
            ("questions as training asks them", self.heard),
            ("questions in other words", self.paraphrased),
            ("questions to decline, in other words", self.declined),
            ("turns of dialogues, in other words", self.talks),
        )
        return [
            "| greedy answers to | asked | right, to the letter | ended by itself |",
            "| --- | ---: | ---: | ---: |",
            *(
                f"| {name} | {marks.asked} | {marks.percent:.1f}% | {100 * marks.ended / marks.asked:.1f}% |"
                for name, marks in rows
            ),
        ]


def card(report: Report) -> str:
    """The README beside the weights."""
    recipe = report.recipe
    return _TEMPLATE.read_text().format(
        town=TOWN,
        assistant=ASSISTANT,
        parameters=f"{report.parameters:,}",
        recipe=recipe,
        made="\n".join([*filter(None, [report.before]), *_made(report)]),
        threads=f"{report.threads} thread{'s' if report.threads > 1 else ''}",
        versions=f"torch {torch.__version__.split('+')[0]}, Transformers {transformers.__version__}",
        table="\n".join(report.lines),
        mistakes=_mistakes(report),
    )


def how_made(text: str) -> str:
    """The commands that a card has."""
    found = re.search(r"^```\n(.+?)\n```$", text, flags=re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def _made(report: Report) -> Sequence[str]:
    """The command, and what it took."""
    recipe, plain = report.recipe, Recipe()
    start = f"--start {_FOLDER} " if report.before else ""
    changed = "".join(
        f"--{name} {getattr(recipe, name):g} "
        for name in ("learning_rate", "practice")
        if getattr(recipe, name) != getattr(plain, name)
    )
    return (
        f"python -m cluster.demo_maker {start}--output_dir {_FOLDER} --seed {recipe.seed} "
        f"--steps {recipe.steps} {changed}--threads {report.threads}",
        f"# {recipe.steps * recipe.batch_tokens:,} tokens in batches of {recipe.batch_tokens:,}, "
        f"{report.processor_minutes:.0f} minutes of processor time, {report.minutes:.0f} by the clock",
    )


def _mistakes(report: Report) -> str:
    counts = (report.paraphrased.wrong_by_kind + report.declined.wrong_by_kind).most_common(8)
    return ", ".join(f"{kind} ({count})" for kind, count in counts) or "none"
