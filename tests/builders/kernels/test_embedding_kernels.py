"""Embeddings, interpreted, beside plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from builders.kernels.call import Config, Runner
from builders.kernels.embedding import embed

Near = Callable[[Tensor, Tensor], None]
CONFIG = Config(blocks={"BLOCK": 32})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_whole_table(dtype: torch.dtype, run: Runner, assert_near: Near) -> None:
    torch.manual_seed(0)
    weight, learned = torch.randn(20, 40).to(dtype), torch.randn(10, 40).to(dtype)
    ids, positions = torch.tensor([3, 19, 0]), torch.tensor([9, 0, -1])
    out = torch.empty(3, 40, dtype=dtype)
    run(embed(ids, weight, CONFIG, out=out, scale=1.7, positions=positions, position_weight=learned))
    expected = F.embedding(ids, weight).float() * 1.7
    expected[:2] += learned[positions[:2]].float()
    assert_near(out, expected)


def test_rows_of_other_ranks_are_zero(run: Runner) -> None:
    weight = torch.arange(1.0, 9.0).view(4, 2)
    ids = torch.tensor([8, 11, 7, 12], dtype=torch.int32)
    out = torch.empty(4, 2)
    run(embed(ids, weight, CONFIG, out=out, first=torch.tensor(8)))
    assert out.tolist() == [[1, 2], [7, 8], [0, 0], [0, 0]]
