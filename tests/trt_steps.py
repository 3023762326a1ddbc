"""Steps of sequences in slots."""

from __future__ import annotations

import torch

from builders.ops import Step


def step_of(parts: list[tuple[int, int, int]], wanted: list[int] | None = None) -> Step:
    """Sequences as (slot, first position, number of tokens); wanted are the last tokens of each."""
    lengths = [start + count for _slot, start, count in parts]
    ends = torch.tensor([count for _slot, _start, count in parts]).cumsum(0)
    return Step(
        positions=torch.cat([torch.arange(start, start + count) for _slot, start, count in parts]),
        sequences=torch.repeat_interleave(torch.tensor([count for _slot, _start, count in parts])),
        lengths=torch.tensor(lengths),
        block_table=torch.tensor([[slot] for slot, _start, _count in parts]),
        wanted=ends - 1 if wanted is None else torch.tensor(wanted),
    )
