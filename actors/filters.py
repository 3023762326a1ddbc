"""Top-k, top-p and min-p: which tokens may be drawn. What may not gets minus infinity.

A token's part of the whole is counted in integers, so that neither the order of summation nor the batch
decides which token is the last of a nucleus. Among equal scores at that edge, later tokens are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEVER = float("-inf")
_WEIGHT = 2.0**36
"""The weight of the likeliest token; a vocabulary of 2**17 adds up to what a double holds exactly."""
_ROWS = 64
"""Rows that are sorted at once: a bound on memory, not on meaning."""


def kept_by_top_k(scores: Tensor, top_k: Tensor, most: int) -> Tensor:
    """Keep what is as likely as the k-th likeliest; k [R] is at most `most`, and 0 keeps all."""
    best = scores.topk(min(most, scores.shape[-1])).values
    last = best.gather(1, (top_k - 1).clamp(0, best.shape[1] - 1)[:, None])
    return scores.masked_fill((scores < last) & (top_k > 0)[:, None], NEVER)


def kept_by_top_p(scores: Tensor, top_p: Tensor) -> Tensor:
    """Keep the fewest of the likeliest that add up to p [R] float64 at least; 1 keeps all."""
    parts = zip(scores.split(_ROWS), top_p.split(_ROWS), strict=True)
    return torch.cat([_nucleus(*part) for part in parts])


def _nucleus(scores: Tensor, top_p: Tensor) -> Tensor:
    ordered, places = scores.sort(dim=-1, stable=True)
    weights = (ordered - ordered[:, -1:]).exp_().mul_(_WEIGHT).round_().long()
    below = weights.cumsum(-1)
    limit = ((1 - top_p) * below[:, -1].double()).floor().long()
    dropped = below <= limit.masked_fill(top_p >= 1, -1)[:, None]
    dropped[:, -1].fill_(False)
    return scores.masked_fill(dropped.scatter(1, places, dropped), NEVER)


def kept_by_min_p(scores: Tensor, min_p: Tensor) -> Tensor:
    """Keep what is at least min_p [R] times as likely as the likeliest; 0 keeps all."""
    ratio = (scores - scores.amax(-1, keepdim=True)).exp_()
    return scores.masked_fill(ratio < min_p[:, None], NEVER)
