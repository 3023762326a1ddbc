"""Kernels on a GPU: every family of tiny models in half precision, launched and captured, against the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from builders.kernels.aot import compile_source
from builders.kernels.call import Call
from builders.kernels.driver import Compiled, Kernels
from builders.limits import Limits
from tests.cuda_ranks import On, following, further, kernel_pair, of_rows, prompts
from tests.oracle import bigcode, dbrx, gpt2, llama, mistral, mixtral, mpt, random_model, rope, starcoder2

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

LIMITS = Limits(max_batch_size=5, max_input_len=64, max_seq_len=96, max_num_tokens=192, tokens_per_block=16)
MODELS = [
    llama(hidden_size=256, intermediate_size=512),
    llama(hidden_size=320, num_attention_heads=5, num_key_value_heads=1, attention_bias=True, mlp_bias=True),
    rope("linear"),
    mistral(sliding_window=9),
    gpt2(),
    bigcode(),
    starcoder2(),
    mpt(),
    mixtral(),
    dbrx(),
]
"""Where not every expert is chosen, rounding alone may choose others: those are compared in float32."""
MORE = [[1, 1, 1, 1], [1, 1, 9, 3], [1, 1, 1, 1], [1, 1, 1, 1]]
"""Tokens of each after its prompt; in one step, some are alone beside others."""


class Compiling:
    """Compiles what is launched for the first time, by whatever test."""

    def __init__(self) -> None:
        self._kernels: dict[object, Kernels] = {}

    def __call__(self, calls: list[Call]) -> None:
        major, minor = torch.cuda.get_device_capability()
        for call in calls:
            if call.source not in self._kernels:
                compiled: Compiled = compile_source(call.source, 10 * major + minor)
                self._kernels[call.source] = Kernels([compiled])
            self._kernels[call.source].run([call])


COMPILING = Compiling()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("config", MODELS, ids=lambda config: config.model_type)
def test_prompts_then_tokens(config: PreTrainedConfig, dtype: torch.dtype, tmp_path: Path) -> None:
    """As near to float32 as PyTorch comes in the same dtype."""
    if dtype != torch.float32 and config.model_type in ("mixtral", "dbrx"):
        config = {"mixtral": mixtral(num_experts_per_tok=4), "dbrx": dbrx(top_k=4)}[config.model_type]
    on = On(run=COMPILING, device="cuda", dtype=dtype)
    pair = kernel_pair(random_model(config), tmp_path, LIMITS, on)
    step, ids = prompts([37, 1, 40, 5], LIMITS), torch.randint(0, 90, (83,))
    for turn, counts in enumerate(MORE):
        engines = (pair.kernels, pair.plain, pair.rounded)
        ours, plain, rounded = (engine.forward(ids, step).cpu().float() for engine in engines)
        limit = 2 * (rounded - plain).abs().max().item() + 1e-3 * plain.abs().max().item()
        torch.testing.assert_close(ours, plain, rtol=0, atol=limit, msg=lambda m, t=turn: f"turn {t}: {m}")
        step, ids = further(step, counts), torch.randint(0, 90, (sum(counts),))


@pytest.mark.parametrize("config", [MODELS[0], gpt2(), mpt()], ids=lambda config: config.model_type)
def test_graphs_give_what_launches_give(config: PreTrainedConfig, tmp_path: Path) -> None:
    on = On(run=COMPILING, device="cuda", dtype=torch.bfloat16)
    pair = kernel_pair(random_model(config), tmp_path, LIMITS, on)
    step, ids = prompts([37, 1, 20], LIMITS), torch.randint(0, 90, (58,))
    launched = pair.kernels.forward(ids, step).cpu()
    ids, step = launched.argmax(-1), following(step)
    launched = pair.kernels.forward(ids, step).cpu()
    pair.kernels.prepare()
    captured = pair.kernels.forward(ids, step).cpu()
    torch.testing.assert_close(captured, launched, rtol=0, atol=2e-2 * launched.abs().max().item())
    ids, step = launched.argmax(-1), following(step)
    again = [pair.kernels.forward(ids, step).cpu() for _ in range(2)]
    assert torch.equal(*again)


def test_graphs_read_and_write_what_the_caller_keeps(tmp_path: Path) -> None:
    """Three of four sequences decode in rows of a table; the fourth is as it was, though a row is padding."""
    pair = kernel_pair(
        random_model(MODELS[0]), tmp_path, LIMITS, On(run=COMPILING, device="cuda"), sequences=9
    )
    step, rows, table = prompts([37, 1, 20, 9], LIMITS), torch.tensor([6, 0, 3, 8]), pair.kernels.table
    last = torch.zeros(10, dtype=torch.int64, device="cuda")
    pair.kernels.prepare(
        before=last.__getitem__, after=lambda out, at: last.index_copy_(0, at, out.argmax(-1))
    )
    pair.kernels.set_blocks(rows, step.block_table)
    ids = torch.randint(0, 90, (67,))
    near(pair.kernels.forward(ids, of_rows(step, rows, table)), plain := pair.plain.forward(ids, step))
    last[rows.cuda()], reached = plain.argmax(-1).cuda(), step.lengths.clone()
    for taking_part in (3, 3, 3, 4):
        several, lengths = torch.arange(taking_part), reached[:taking_part]
        one_each = replace(step, positions=lengths.clone(), sequences=several, wanted=several)
        one_each = replace(one_each, lengths=lengths + 1, block_table=step.block_table[:taking_part])
        plain = pair.plain.forward(last.cpu()[rows[several]], one_each)
        near(pair.kernels.decode(of_rows(one_each, rows, table)), plain)
        assert torch.equal(last.cpu()[rows[several]], plain.argmax(-1))
        reached[:taking_part] += 1


def near(ours: Tensor, plain: Tensor) -> None:
    torch.testing.assert_close(ours.cpu(), plain, rtol=1e-3, atol=1e-3)
