"""The options of `python -m cluster.demo_maker`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.demo_maker.training import Recipe
from cluster.options import option


@dataclass(frozen=True, kw_only=True)
class MakeOptions:
    """What may be chosen about making the demo's model; the rest is its recipe."""

    output_dir: Path = option(help="Folder for the model; what it holds is replaced.")
    seed: int = option(Recipe.seed, help="Of the dialogues and of the first weights.", least=0)
    steps: int = option(Recipe.steps, help="Batches to train on.", least=1)
    start: Path | None = option(
        None, help="Go on from this model, with its tokenizer, instead of from random weights."
    )
    learning_rate: float = option(Recipe.learning_rate, help="The highest.", least=0)
    practice: float = option(
        Recipe.practice,
        help="The part of all questions that are about what takes longest to learn.",
        least=0,
        most=1,
    )
    threads: int = option(1, help="Threads to compute with; on a busy machine more are slower.", least=1)
    least: float = option(
        75.0,
        help="Of a hundred questions in words unheard, so many must be right, or nothing is written.",
        least=0,
        most=100,
    )
