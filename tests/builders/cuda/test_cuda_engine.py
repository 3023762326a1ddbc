"""A rank whose programs launch kernels, executed by Triton's interpreter, against the plain decoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedConfig

from builders.kernels.call import Runner
from builders.limits import Limits
from builders.ops import Step
from tests.cuda_ranks import kernel_pair
from tests.oracle import gpt2, llama, mpt, random_model
from tests.sim import BLOCK

LIMITS = Limits(max_batch_size=3, max_input_len=8, max_seq_len=16, max_num_tokens=24, tokens_per_block=BLOCK)


def prompts(lengths: list[int]) -> Step:
    """Whole prompts of these lengths, the last token of each wanted; blocks of sequences interleave."""
    total = torch.tensor(lengths)
    batch, blocks = len(lengths), LIMITS.max_seq_len // BLOCK
    return Step(
        positions=torch.cat([torch.arange(length) for length in lengths]),
        sequences=torch.arange(batch).repeat_interleave(total),
        lengths=total,
        block_table=torch.arange(batch * blocks).view(blocks, batch).t().contiguous(),
        wanted=total.cumsum(0) - 1,
    )


def following(step: Step) -> Step:
    """One more token of each."""
    rows = torch.arange(len(step.lengths))
    return Step(
        positions=step.lengths.clone(),
        sequences=rows,
        lengths=step.lengths + 1,
        block_table=step.block_table,
        wanted=rows,
    )


@pytest.mark.parametrize("config", [llama(), gpt2(), mpt()], ids=lambda config: config.model_type)
def test_prompts_then_tokens(config: PreTrainedConfig, run: Runner, tmp_path: Path) -> None:
    pair = kernel_pair(random_model(config), tmp_path, LIMITS, run)
    step = prompts([5, 1, 7])
    ids = torch.randint(0, 90, (13,))
    for _ in range(3):
        ours, plain = pair.kernels.forward(ids, step), pair.plain.forward(ids, step)
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
        ids, step = plain.argmax(-1), following(step)
