"""How large a cache is: its blocks, and how many there are where nobody says."""

from __future__ import annotations

import math
import os
from dataclasses import replace

from builders.checkpoint import Manifest
from builders.engine_manifest import EngineManifest, TrtManifest
from builders.errors import EngineError
from builders.limits import Limits
from builders.memory import activation_bytes, cache_bytes_per_token, element_bytes
from builders.shard import targets

HEADROOM_BYTES = 2 << 30
"""Of a GPU: graphs, sampling, communicators, what the allocator cannot use."""

HOST_SHARE = 0.5
"""Of the host's free memory, for all ranks of an engine that runs there."""


def cache_limits(manifest: EngineManifest) -> Limits:
    """As the cache has them: a TensorRT engine keeps a sequence in one block, its slot."""
    limits = manifest.limits
    if isinstance(manifest, TrtManifest):
        return replace(limits, tokens_per_block=limits.max_seq_len)
    return limits


def num_blocks(manifest: EngineManifest, free_bytes: int | None, fraction: float) -> int:
    """From a GPU's free bytes before anything is loaded, or from the host's memory."""
    limits = manifest.limits
    if isinstance(manifest, TrtManifest):
        return limits.max_sequences  # the slots that the plan has
    per_sequence = -(-limits.max_seq_len // limits.tokens_per_block)
    if free_bytes is None:
        each = HOST_SHARE * _host_bytes() / manifest.checkpoint.mapping.world_size
        affordable = int(each) // _block_bytes(manifest)
        return min(affordable, 2 * limits.max_sequences * per_sequence)
    found = int(fraction * (free_bytes - _taken_bytes(manifest))) // _block_bytes(manifest)
    if found < per_sequence:
        raise EngineError(
            f"{free_bytes / 2**30:.1f} GiB free on the device: too little for one sequence of "
            f"{limits.max_seq_len} tokens; use more ranks, or build with a smaller --max_seq_len"
        )
    return found


def _block_bytes(manifest: EngineManifest) -> int:
    """Of the rank that has most."""
    checkpoint = manifest.checkpoint
    per_token = max(cache_bytes_per_token(checkpoint, rank) for rank in range(checkpoint.mapping.world_size))
    return per_token * manifest.limits.tokens_per_block


def _taken_bytes(manifest: EngineManifest) -> int:
    """Weights, what the largest step computes with, and the headroom."""
    checkpoint, limits = manifest.checkpoint, manifest.limits
    ranks = range(checkpoint.mapping.world_size)
    weights = max(_weight_bytes(checkpoint, rank) for rank in ranks)
    steps = max(activation_bytes(checkpoint, rank, limits) for rank in ranks)
    return weights + steps + HEADROOM_BYTES


def _weight_bytes(checkpoint: Manifest, rank: int) -> int:
    elements = (math.prod(target.shape) for target in targets(checkpoint.spec, checkpoint.mapping, rank))
    return sum(elements) * element_bytes(checkpoint)


def _host_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
