"""What a device allows: its read bandwidth and matrix rate, measured, and the least time of a model's steps.

A decoding step reads every weight once, but of the embedding its rows alone and of experts those that are
chosen, and of the cache every token so far. A prompt multiplies every token with every weight, but only the
last with the head. No step is faster than its bytes and no faster than its products.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from builders.checkpoint import Manifest
from builders.mapping import rank_shape
from builders.memory import cache_bytes_per_token, element_bytes
from builders.shard import Target, head_is_embedding, targets

ROUNDS = 7


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What one device does at most, as found by plain PyTorch."""

    read_bytes_per_s: float
    """Of a reduction over memory that is much larger than its caches."""
    flops_per_s: float
    """Of a large product of square matrices, in the dtype of the weights; an addition counts as one."""


def measured_rates(device: str, dtype: torch.dtype) -> Rates:
    """Takes a second or two, and gives its memory back."""
    on_device = device != "cpu"
    count, side = (1 << 30, 8192) if on_device else (1 << 26, 1024)
    rates = Rates(
        read_bytes_per_s=_read_bytes_per_s(count, device, on_device),
        flops_per_s=_flops_per_s(side, device, dtype, on_device),
    )
    if on_device:
        torch.cuda.empty_cache()
    return rates


def _read_bytes_per_s(count: int, device: str, on_device: bool) -> float:
    big = torch.zeros(count, device=device)
    return big.nbytes / min(_seconds(big.amax, on_device), _seconds(big.sum, on_device))


def _flops_per_s(side: int, device: str, dtype: torch.dtype, on_device: bool) -> float:
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    return 2 * side**3 / _seconds(lambda: matrix @ matrix, on_device)


def _seconds(run: Callable[[], object], on_device: bool) -> float:
    """The shortest of several rounds: what the device can, not what it did while it was busy."""
    repeats = 20 if on_device else 2
    run()
    return min(_round(run, repeats, on_device) for _ in range(ROUNDS)) / repeats


def _round(run: Callable[[], object], repeats: int, on_device: bool) -> float:
    if on_device:
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    if on_device:
        torch.cuda.synchronize()
    return time.perf_counter() - began


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """The least times of a model on devices of these rates."""

    manifest: Manifest
    rates: Rates

    def decode_s(self, batch: int, context: float) -> float:
        """From a token of every sequence to the next, with so many tokens of each in the cache.

        Stages of a pipeline work one after another, each on its share of the sequences.
        """
        stages = self.manifest.mapping.pp_size
        lane = math.ceil(batch / stages)
        return sum(self._stage_s(stage, lane, context) for stage in range(stages))

    def prefill_s(self, batch: int, tokens: int, steps: int) -> float:
        """Of so many prompts of so many tokens, in so many steps; all stages work at once."""
        ranks = range(self.manifest.mapping.world_size)
        products = max(prefill_flops(self.manifest, rank, batch, tokens) for rank in ranks)
        read = max(weight_bytes(self.manifest, rank, batch * tokens / steps) for rank in ranks)
        return max(products / self.rates.flops_per_s, steps * read / self.rates.read_bytes_per_s)

    def _stage_s(self, stage: int, batch: int, context: float) -> float:
        tp = self.manifest.mapping.tp_size
        ranks = range(stage * tp, (stage + 1) * tp)
        return max(self._rank_s(rank, batch, context) for rank in ranks)

    def _rank_s(self, rank: int, batch: int, context: float) -> float:
        read = weight_bytes(self.manifest, rank, batch)
        read += batch * context * cache_bytes_per_token(self.manifest, rank)
        products = decode_flops(self.manifest, rank, batch, context)
        return max(read / self.rates.read_bytes_per_s, products / self.rates.flops_per_s)


def weight_bytes(manifest: Manifest, rank: int, tokens: float) -> float:
    """What a rank's step of so many tokens reads of its weights, at least.

    Of experts those that some token is sent to, where every choice is as likely as every other.
    """
    moe = manifest.spec.moe
    touched = 1 - (1 - moe.top_k / moe.num_experts) ** tokens if moe else 1.0
    read = sum(
        _elements(target) * (touched if _is_expert(target) else 1.0) for target in _read(manifest, rank)
    )
    return read * element_bytes(manifest)


def decode_flops(manifest: Manifest, rank: int, batch: int, context: float) -> float:
    """Multiplications and additions of a rank's step of one token for each sequence."""
    dense = batch * (_layer_flops(manifest, rank) + _head_flops(manifest, rank))
    return dense + batch * _attention_flops(manifest, rank, context)


def prefill_flops(manifest: Manifest, rank: int, batch: int, tokens: int) -> float:
    """Of whole prompts: a token sees those before it, and only the last one meets the head."""
    attention = _attention_flops(manifest, rank, tokens * (tokens + 1) / 2)
    return batch * (tokens * _layer_flops(manifest, rank) + _head_flops(manifest, rank) + attention)


def _layer_flops(manifest: Manifest, rank: int) -> float:
    """Of one token with a rank's matrices, but those of the ends of the model."""
    moe = manifest.spec.moe
    share = moe.top_k / moe.num_experts if moe else 1.0
    matrices = [one for one in targets(manifest.spec, manifest.mapping, rank) if len(one.shape) > 1]
    inner = [one for one in matrices if one.name.startswith("layers.")]
    return sum(2 * _elements(one) * (share if _is_expert(one) else 1.0) for one in inner)


def _head_flops(manifest: Manifest, rank: int) -> float:
    shape = rank_shape(manifest.spec, manifest.mapping, rank)
    return 2.0 * manifest.spec.hidden_size * shape.vocab_size if shape.last else 0.0


def _attention_flops(manifest: Manifest, rank: int, pairs: float) -> float:
    """Of so many pairs of tokens, in each of a rank's layers: a product with k and one with v."""
    shape = rank_shape(manifest.spec, manifest.mapping, rank)
    return 4.0 * pairs * len(shape.layers) * shape.num_heads * manifest.spec.head_dim


def _read(manifest: Manifest, rank: int) -> list[Target]:
    """The tensors that every step reads: tables of embeddings are looked up, unless they are the head too."""
    shape = rank_shape(manifest.spec, manifest.mapping, rank)
    tied = shape.last and head_is_embedding(manifest.spec, manifest.mapping)
    looked_up = {"positions.weight"} | (set() if tied else {"embed.weight"})
    return [one for one in targets(manifest.spec, manifest.mapping, rank) if one.name not in looked_up]


def _is_expert(target: Target) -> bool:
    return ".moe." in target.name and ".router." not in target.name


def _elements(target: Target) -> int:
    return math.prod(target.shape)
