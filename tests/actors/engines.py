"""Tiny engines for groups of ranks, and what Transformers makes of the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from actors.messages import Admitted, Chunk, Order, StepPlan, bits_of, packed
from actors.sampling_params import SamplingParams
from builders.mapping import Mapping
from builders.sources.hf import open_folder
from tests.actors.scenario import LIMITS
from tests.builders.test_engine import build
from tests.convert_tools import convert_opened
from tests.oracle import MODELS, random_model
from tests.tiny import save_llama

if TYPE_CHECKING:
    from actors.ranks import Ranks

PROMPTS = [[5, 17, 42, 7, 99, 3, 61], [88, 2, 30], [11]]
"""Of different lengths, in one batch."""

NEW_TOKENS = 16
NUM_BLOCKS = 32


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """A model of Transformers and what it says."""

    folder: Path
    model: PreTrainedModel
    greedy: list[list[int]]
    """The continuation of every prompt."""


def oracle(name: str, folder: Path) -> Oracle:
    model = random_model(MODELS[name]())
    model.save_pretrained(folder)
    return Oracle(folder=folder, model=model, greedy=[_continued(model, prompt) for prompt in PROMPTS])


@torch.no_grad()
def _continued(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    for _ in range(NEW_TOKENS):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    found: list[int] = ids[0, len(prompt) :].tolist()
    return found


def engine(model: Path, mapping: Mapping, out: Path) -> Path:
    """Interpreted: compiling takes longer than all that is tested here."""
    return build(convert_opened(open_folder(model), mapping, out), compiled=False)


def small(folder: Path, mapping: Mapping) -> Path:
    """Of a model that nobody asks what it would say, with the limits of scenarios."""
    model = open_folder(save_llama(folder / "model"))
    return build(convert_opened(model, mapping, folder / "engine"), compiled=False, limits=LIMITS)


def first_step(prompts: list[list[int]]) -> Order:
    """All prompts at once, each in a slot of its own; a token of each."""
    admitted = tuple(
        Admitted(
            slot=slot,
            request=str(slot),
            index=0,
            params=SamplingParams(temperature=0, seed=0),
            tokens=packed(prompt),
            num_prompt=len(prompt),
            blocks=blocks_of(slot, len(prompts)),
        )
        for slot, prompt in enumerate(prompts)
    )
    chunks = tuple(Chunk(slot, 0, len(prompt), (slot,)) for slot, prompt in enumerate(prompts))
    return Order(StepPlan(0, admitted=admitted, chunks=chunks))


def blocks_of(slot: int, slots: int) -> tuple[int, ...]:
    """Blocks of different sequences interleave, so that a wrong table cannot go unnoticed."""
    return tuple(range(slot, 8 * slots, slots))


def next_step(number: int, tokens: list[int]) -> Order:
    """The next token of every slot; these are the last ones."""
    return Order(StepPlan(number, decode=bits_of((1 << len(tokens)) - 1)), packed(tokens))


def generate(ranks: Ranks) -> list[list[int]]:
    """What ranks say after every prompt."""
    found: list[list[int]] = [[] for _ in PROMPTS]
    order = first_step(PROMPTS)
    for number in range(1, NEW_TOKENS + 1):
        ranks.submit(order)
        result = ranks.collect()
        assert result.step == number - 1, "results come in order"
        for tokens, token in zip(found, result.tokens, strict=True):
            tokens.append(token)
        order = next_step(number, list(result.tokens))
    return found
