"""A rank whose programs launch kernels, executed by Triton's interpreter, against the plain decoder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from builders.cuda.table import KERNELS
from builders.kernels.call import Call, Runner
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


@pytest.mark.parametrize(
    ("config", "lengths"),
    [(llama(), FEW), (mpt(), MANY), (mixtral(), FEW)],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_layers_that_repeat_others_do_the_same(
    config: PreTrainedConfig, lengths: list[int], run: Runner, tmp_path: Path
) -> None:
    """To the last bit; all but the first repeat."""
    launched = list[Call]()

    def counted(calls: Iterable[Call]) -> None:
        launched.extend(calls := [*calls])
        run(calls)

    pair = kernel_pair(random_model(config), tmp_path, LIMITS, On(run=counted))
    context, step, ids = (
        pair.kernels._context,
        prompts(lengths, LIMITS),
        torch.randint(0, 90, (sum(lengths),)),
    )
    found, kernels = list[Tensor](), list[list[str]]()
    for repeater in (context.repeater, None):
        context.repeater = repeater
        found.append(pair.kernels.forward(ids, step).clone())
        kernels.append([call.kernel for call in launched])
        launched.clear()
    assert torch.equal(*found)
    assert kernels[0] == kernels[1]


def test_every_beam_is_a_row() -> None:
    limits = Limits(max_batch_size=3, max_beam_width=4, max_seq_len=32, max_input_len=16)
    assert max(KERNELS["fused.attend"].buckets(limits)) >= 12
    assert Limits(max_batch_size=3).max_sequences == 3
