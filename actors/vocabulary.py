"""Logits that are spread over tensor parallel ranks: each rank has the scores of a part of the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from builders.ops import Communicator


def gathered(part: Tensor, vocab_size: int, comm: Communicator) -> Tensor:
    """All ranks' logits, float32 and without the padding: the same on every rank."""
    return comm.all_gather(part)[:, :vocab_size].float()


def greedy(part: Tensor, rank: int, vocab_size: int, comm: Communicator) -> Tensor:
    """The likeliest tokens [R], the first among equals, from parts [R, V / ranks] that stay where they are.

    Ranks exchange two numbers a row in one collective. A rank may hold nothing but padding.
    """
    first = rank * part.shape[1]
    real = part[:, : max(0, vocab_size - first)]
    if real.shape[1]:
        best, places = real.float().max(-1)
    else:
        best = torch.full((part.shape[0],), float("-inf"), device=part.device)
        places = torch.zeros(part.shape[0], dtype=torch.int64, device=part.device)
    # The token travels as the bits of a float: a collective moves them as they are.
    token = (places + first).int().view(torch.float32)
    pairs = comm.all_gather(torch.stack([best, token], dim=-1)).unflatten(-1, (-1, 2))
    winner = pairs[..., 0].argmax(-1, keepdim=True)
    return pairs[..., 1].contiguous().view(torch.int32).gather(1, winner)[:, 0].long()
