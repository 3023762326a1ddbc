"""How much memory a rank takes, from sizes alone."""

from __future__ import annotations

import torch

from builders.checkpoint import Manifest
from builders.limits import Limits
from builders.mapping import RankShape, rank_shape
from builders.spec import ModelSpec


def cache_bytes_per_token(manifest: Manifest, rank: int) -> int:
    """What one token takes in a rank's cache, in the dtype of the weights."""
    shape = rank_shape(manifest.spec, manifest.mapping, rank)
    return 2 * len(shape.layers) * shape.num_kv_heads * manifest.spec.head_dim * element_bytes(manifest)


def element_bytes(manifest: Manifest) -> int:
    """Of a weight or an activation."""
    return int(getattr(torch, manifest.dtype).itemsize)


def activation_bytes(manifest: Manifest, rank: int, limits: Limits) -> int:
    """An estimate of what the largest step computes with beside weights and cache.

    The residual stream and its norm live throughout; attention, MLP and head take turns. What the attention
    operator needs within itself depends on its kernel and is not counted.
    """
    spec, shape = manifest.spec, rank_shape(manifest.spec, manifest.mapping, rank)
    element = element_bytes(manifest)
    turns = (_attention_width(spec, shape), _mlp_width(spec, shape))
    stream = limits.max_num_tokens * (2 * spec.hidden_size + max(turns)) * element
    logits = limits.max_logits * shape.vocab_size * (element + 4) if shape.last else 0
    return max(stream, limits.max_num_tokens * 2 * spec.hidden_size * element + logits)


def _attention_width(spec: ModelSpec, shape: RankShape) -> int:
    """q, k and v; q and k rotated, with v beside them; and the result."""
    return (3 * shape.num_heads + 4 * shape.num_kv_heads) * spec.head_dim


def _mlp_width(spec: ModelSpec, shape: RankShape) -> int:
    """Before and after the activation, for every expert that a token is sent to."""
    return shape.intermediate_size * (3 if spec.gated else 2) * (spec.moe.top_k if spec.moe else 1)
