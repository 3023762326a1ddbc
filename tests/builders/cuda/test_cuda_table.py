"""Sequences whose blocks a rank keeps in a table of its own: steps name rows of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from builders.kernels.call import Runner
from builders.kernels.draw import Wishes
from builders.kernels.likeliest import LIKELIEST_CONFIG
from builders.limits import Limits
from builders.ops import Step
from tests.cuda_ranks import On, Pair, following, kernel_pair, of_rows, prompts
from tests.oracle import llama, random_model
from tests.sim import BLOCK

LIMITS = Limits(max_batch_size=3, max_input_len=48, max_seq_len=48, max_num_tokens=96, tokens_per_block=BLOCK)
ROWS = torch.tensor([6, 0, 3])
"""Neither in order nor next to each other; more than one step may have."""


@pytest.fixture
def pair(run: Runner, tmp_path: Path) -> Pair:
    return kernel_pair(random_model(llama()), tmp_path, LIMITS, On(run=run), sequences=7)


def near(ours: Tensor, plain: Tensor) -> None:
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


def test_rows_are_sequences(pair: Pair) -> None:
    """Prompts, a step of one token each, and one of both; some blocks move in between."""
    step, ids, table = prompts([5, 1, 7], LIMITS), torch.randint(0, 90, (13,)), pair.kernels.table
    pair.kernels.set_blocks(ROWS, step.block_table)
    near(pair.kernels.forward(ids, of_rows(step, ROWS, table)), pair.plain.forward(ids, step))
    step, ids = following(step), torch.randint(0, 90, (3,))
    near(pair.kernels.forward(ids, of_rows(step, ROWS, table)), pair.plain.forward(ids, step))
    moved = torch.cat([step.block_table[2:, 6:], step.block_table[2:, :6]], dim=1)
    pair.kernels.copy_blocks(list(zip(moved[0, 6:].tolist(), moved[0, :6].tolist(), strict=True)))
    pair.kernels.set_blocks(ROWS[2:], moved)
    step, ids = with_more(step), torch.randint(0, 90, (5,))
    near(pair.kernels.forward(ids, of_rows(step, ROWS, table)), pair.plain.forward(ids, step))


def with_more(step: Step) -> Step:
    """A token for the first two, three for the last."""
    one, other, third = step.lengths.tolist()
    return replace(
        step,
        positions=torch.tensor([one, other, third, third + 1, third + 2]),
        sequences=torch.tensor([0, 1, 2, 2, 2]),
        lengths=step.lengths + torch.tensor([1, 1, 3]),
        wanted=torch.tensor([0, 4]),
    )


def test_a_step_begins_and_ends_with_what_the_caller_keeps(pair: Pair) -> None:
    """As graphs do, here launch by launch."""
    step, ids, table = prompts([5, 1, 7], LIMITS), torch.randint(0, 90, (13,)), pair.kernels.table
    last, seen = torch.zeros(8, dtype=torch.int64), list[Tensor]()

    def after(out: Tensor, rows: Tensor) -> None:
        seen.append(rows.clone())
        last[rows] = out.argmax(-1)

    pair.kernels._before, pair.kernels._after = last.__getitem__, after
    pair.kernels.set_blocks(ROWS, step.block_table)
    last[ROWS] = pair.kernels.forward(ids, of_rows(step, ROWS, table)).argmax(-1)
    assert not seen, "prompts are the caller's to sample"
    ids = pair.plain.forward(ids, step).argmax(-1)
    for _ in range(2):
        step = following(step)
        plain = pair.plain.forward(ids, step)
        near(pair.kernels.decode(of_rows(step, ROWS, table)), plain)
        ids = plain.argmax(-1)
        assert torch.equal(last[ROWS], ids)
    assert torch.equal(torch.stack(seen), ROWS.expand(2, 3))
    assert last.count_nonzero() <= 3, "nobody else's"


def test_logits_are_chosen_from_where_they_lie(pair: Pair) -> None:
    """Padded rows: neither their padding nor how far they lie apart counts."""
    padded, slots = torch.randn(3, 128), torch.arange(3)
    padded[:, 101:] = 9
    scores = padded[:, :101]
    pair.kernels.finding = LIKELIEST_CONFIG
    assert pair.kernels.likeliest(scores).tolist() == scores.argmax(-1).tolist()
    wishes = Wishes(reals=torch.zeros(3, 7, dtype=torch.float64), integers=torch.zeros(3, 3).long())
    wishes.reals[:, :2] = 1
    assert (
        pair.kernels.draw(scores, slots, slots, wishes, scaled=False).tolist() == scores.argmax(-1).tolist()
    )
