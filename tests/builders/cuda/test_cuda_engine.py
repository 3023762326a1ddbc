"""A rank whose programs launch kernels, executed by Triton's interpreter, against the plain decoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedConfig

from builders.kernels.call import Runner
from builders.limits import Limits
from tests.cuda_ranks import On, following, kernel_pair, prompts
from tests.oracle import gpt2, llama, mpt, random_model
from tests.sim import BLOCK

LIMITS = Limits(max_batch_size=3, max_input_len=8, max_seq_len=16, max_num_tokens=24, tokens_per_block=BLOCK)


@pytest.mark.parametrize("config", [llama(), gpt2(), mpt()], ids=lambda config: config.model_type)
def test_prompts_then_tokens(config: PreTrainedConfig, run: Runner, tmp_path: Path) -> None:
    pair = kernel_pair(random_model(config), tmp_path, LIMITS, On(run=run))
    step = prompts([5, 1, 7], LIMITS)
    ids = torch.randint(0, 90, (13,))
    for _ in range(3):
        ours, plain = pair.kernels.forward(ids, step), pair.plain.forward(ids, step)
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
        ids, step = plain.argmax(-1), following(step)
