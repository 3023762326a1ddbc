"""Tiny engines for groups of ranks, and what Transformers makes of the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from actors.step_messages import Answer, order_of, tokens_of
from builders.mapping import Mapping
from builders.ops import Step
from builders.sources.hf import open_folder
from tests.builders.test_engine import build
from tests.convert_tools import convert_opened
from tests.oracle import MODELS, random_model

if TYPE_CHECKING:
    from actors.rank_group import RankGroup  # takes Ray, which ranks by themselves do without

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


def block_table(batch: int) -> Tensor:
    """Blocks of different sequences interleave, so that a wrong table cannot go unnoticed."""
    return torch.arange(NUM_BLOCKS // batch * batch).view(-1, batch).t().contiguous()


def prefill(prompts: list[list[int]]) -> tuple[Tensor, Step]:
    """All prompts at once; the last token's logits of each are wanted."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return torch.tensor([token for prompt in prompts for token in prompt]), Step(
        positions=torch.cat([torch.arange(len(prompt)) for prompt in prompts]),
        sequences=torch.arange(len(prompts)).repeat_interleave(lengths),
        lengths=lengths,
        block_table=block_table(len(prompts)),
        wanted=lengths.cumsum(0) - 1,
    )


def decode(tokens: list[int], lengths: list[int]) -> tuple[Tensor, Step]:
    """A token for every sequence, which then has so many."""
    rows = torch.arange(len(tokens))
    return torch.tensor(tokens), Step(
        positions=torch.tensor(lengths) - 1,
        sequences=rows,
        lengths=torch.tensor(lengths),
        block_table=block_table(len(tokens)),
        wanted=rows,
    )


def generate(group: RankGroup) -> list[list[int]]:
    """What the group says after every prompt."""
    found: list[list[int]] = [[] for _ in PROMPTS]
    ids, step = prefill(PROMPTS)
    for number in range(1, NEW_TOKENS + 1):
        for tokens, token in zip(found, asked(group, number, ids, step), strict=True):
            tokens.append(token)
        lengths = [len(prompt) + number for prompt in PROMPTS]
        ids, step = decode([tokens[-1] for tokens in found], lengths)
    return found


def asked(group: RankGroup, number: int, ids: Tensor, step: Step, answer: Answer = "tokens") -> list[int]:
    group.submit(order_of(number, ids, step, answer))
    found = group.collect()
    assert found.number == number, "answers come in order"
    return tokens_of(found)
