"""A rank whose programs launch kernels, executed by Triton's interpreter, against the plain decoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedConfig

from builders.cuda.table import KERNELS
from builders.kernels.call import Runner
from builders.limits import Limits
from tests.cuda_ranks import On, following, kernel_pair, prompts
from tests.oracle import gpt2, llama, mixtral, mpt, random_model
from tests.sim import BLOCK

LIMITS = Limits(max_batch_size=3, max_input_len=48, max_seq_len=48, max_num_tokens=96, tokens_per_block=BLOCK)
FEW, MANY = [5, 1, 7], [40, 1, 29]
"""Prompts of rows for kernels of their own, and of more."""


@pytest.mark.parametrize(
    ("config", "lengths"),
    [(llama(), FEW), (gpt2(), FEW), (mpt(), FEW), (llama(), MANY), (gpt2(), MANY), (mixtral(), FEW)],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_prompts_then_tokens(
    config: PreTrainedConfig, lengths: list[int], run: Runner, tmp_path: Path
) -> None:
    pair = kernel_pair(random_model(config), tmp_path, LIMITS, On(run=run))
    step = prompts(lengths, LIMITS)
    step = replace(step, block_table=step.block_table.t().contiguous().t())  # no row is dense
    ids = torch.randint(0, 90, (sum(lengths),))
    for _ in range(2):
        ours, plain = pair.kernels.forward(ids, step), pair.plain.forward(ids, step)
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
        ids, step = plain.argmax(-1), following(step)


def test_every_beam_is_a_row() -> None:
    limits = Limits(max_batch_size=3, max_beam_width=4, max_seq_len=32, max_input_len=16)
    assert max(KERNELS["fused.attend"].buckets(limits)) >= 12
    assert Limits(max_batch_size=3).max_sequences == 3
