"""Scratch memory as an engine has it, full of what nobody may read."""

from __future__ import annotations

import torch

from builders.kernels.linear import Scratch, ScratchSize


def scratch_of(size: ScratchSize) -> Scratch:
    return Scratch(
        partial=torch.full((size.partial,), float("nan")),
        counters=torch.zeros(size.counters, dtype=torch.int32),
    )
