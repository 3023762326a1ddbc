"""Attention of an 8B Llama over the paged cache: our kernels beside PyTorch's and the device's bandwidth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.device import Device, best_of, compiled, cut, normal, sources_of
from benchmarks.kernels_linear import scratch_for
from builders.kernels.attention import (
    TILED_CONFIGS,
    Attention,
    Chunk,
    decode,
    decode_configs,
    decode_scratch,
    tile_table,
    tiled,
)
from builders.kernels.cache import Paged
from builders.kernels.tune import Candidate, GraphTimer, rounds_for
from builders.ops import write

HEADS, KV_HEADS, DIM = 32, 8, 128
BLOCK = 32
"""Tokens per block of the cache."""
BATCHES = ((1, 512), (1, 4096), (16, 512), (16, 4096), (64, 512), (64, 4096))
"""Sequences, and tokens of each."""
PROMPTS = (512, 4096)
PLAIN = Attention(heads=HEADS, scale=DIM**-0.5)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What goes in and out, and every way between."""

    q: Tensor
    caches: list[Paged]
    out: Tensor
    candidates: list[Candidate]
    num_bytes: int
    """Of keys and values that are read."""


def bench_decode(device: Device) -> None:
    """One token of every sequence."""
    works = [decode_work(device, batch, context) for batch, context in BATCHES]
    kernels = compiled(device, (source for one in works for source in sources_of(one.candidates)))
    for one, (batch, context) in zip(works, BATCHES, strict=True):
        timer = device.timer(kernels, one.num_bytes)
        best = best_of(one.candidates, one.out, attended(one.q, one.caches[0]), timer)
        beside = timer.graph_seconds(partial(torch_decode, one.q, one.caches), len(one.caches))
        if best and best.seconds:
            rate = one.num_bytes / best.seconds
            print(
                f"  batch {batch:2}, context {context:4}: {best.seconds * 1e6:7.1f} us "
                f"{rate / 1e9:5.0f} GB/s {rate / device.read_bytes_per_s:4.0%} of the limit | "
                f"PyTorch, not paged, {beside * 1e6:7.1f} us | {cut(best.config)}",
                flush=True,
            )


def decode_work(device: Device, batch: int, context: int) -> Work:
    num_bytes = batch * context * KV_HEADS * DIM * 2 * 2
    first = a_cache(batch, context, torch.full((batch,), context - 1))
    caches = copies_of(first, rounds_for(num_bytes, device.l2_bytes))
    q, out = normal(batch, HEADS, DIM), normal(batch, HEADS, DIM)
    candidates = decode_candidates(device, q, caches, out, context)
    return Work(q=q, caches=caches, out=out, candidates=candidates, num_bytes=num_bytes)


def a_cache(sequences: int, context: int, positions: Tensor) -> Paged:
    """Full of noise, its blocks shuffled; one token of every sequence, or all tokens of one."""
    pages = context // BLOCK
    tokens = torch.arange(positions.shape[0])
    return Paged(
        k=normal(sequences * pages, BLOCK, KV_HEADS, DIM),
        v=normal(sequences * pages, BLOCK, KV_HEADS, DIM),
        block_table=torch.randperm(sequences * pages).view(sequences, pages).cuda(),
        positions=positions.cuda(),
        sequences=(tokens if sequences > 1 else 0 * tokens).cuda(),
    )


def copies_of(cache: Paged, count: int) -> list[Paged]:
    """The same cache at other addresses."""
    return [cache] + [replace(cache, k=cache.k.clone(), v=cache.v.clone()) for _ in range(count - 1)]


def decode_candidates(
    device: Device, q: Tensor, caches: list[Paged], out: Tensor, context: int
) -> list[Candidate]:
    batch = q.shape[0]
    configs = [
        config
        for overlap in device.overlaps
        for config in decode_configs(batch, KV_HEADS, context, overlap=overlap)
    ]
    scratch = scratch_for([decode_scratch(batch, HEADS, KV_HEADS, DIM, config) for config in configs])
    return [
        Candidate(
            config=config,
            rounds=[decode(q, PLAIN, cache, config, out=out, scratch=scratch) for cache in caches],
        )
        for config in configs
    ]


def attended(q: Tensor, cache: Paged) -> Tensor:
    """In float32, a sequence at a time; q [sequences, heads, D], each token at its sequence's end."""
    rows = []
    for row, pages in zip(q.float(), cache.block_table, strict=True):
        k, v = (part[pages].flatten(0, 1).float().transpose(0, 1) for part in (cache.k, cache.v))
        rows.append(F.scaled_dot_product_attention(row[:, None], *grouped(k, v))[:, 0])
    return torch.stack(rows)


def grouped(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """k and v [kv heads, T, D] for every query head."""
    return k.repeat_interleave(HEADS // KV_HEADS, 0), v.repeat_interleave(HEADS // KV_HEADS, 0)


def torch_decode(q: Tensor, caches: list[Paged], index: int) -> Tensor:
    """As if the cache were not paged."""
    cache = caches[index]
    k, v = (part.view(q.shape[0], -1, KV_HEADS, DIM).transpose(1, 2) for part in (cache.k, cache.v))
    return F.scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True)


def bench_prefill(device: Device) -> None:
    """A whole prompt of one sequence."""
    for tokens in PROMPTS:
        cache = a_cache(1, tokens, torch.arange(tokens))
        packed, out = normal(tokens, HEADS + 2 * KV_HEADS, DIM), normal(tokens, HEADS, DIM)
        q, k, v = packed.split([HEADS, KV_HEADS, KV_HEADS], 1)
        write(k, v, cache.k, cache.v, cache.positions, cache.sequences, cache.block_table, None, None)
        candidates = prefill_candidates(packed, cache, out)
        kernels = compiled(device, sources_of(candidates))
        timer = GraphTimer(run=kernels.run, launches=10)
        best = best_of(candidates, out, prompt_attended(q, cache), timer)
        beside = timer.graph_seconds(partial(torch_prefill, q, cache), 1)
        tera = 2 * 2 * HEADS * DIM * tokens * (tokens + 1) / 2 / 1e12
        if best and best.seconds:
            print(
                f"  {tokens:4} tokens: {best.seconds * 1e6:7.1f} us {tera / best.seconds:4.0f} TFLOP/s | "
                f"PyTorch, not paged, {beside * 1e6:7.1f} us {tera / beside:4.0f} TFLOP/s | "
                f"{cut(best.config)}",
                flush=True,
            )


def prefill_candidates(packed: Tensor, cache: Paged, out: Tensor) -> list[Candidate]:
    """As in an engine: k and v lie behind q, too."""
    chunk = Chunk(sequence=0, first=0, tokens=len(packed), position=0)
    tables = {
        rows: torch.tensor(tile_table([chunk], rows), dtype=torch.int32, device="cuda")
        for rows in {config.blocks["BLOCK_M"] for config in TILED_CONFIGS}
    }
    return [
        Candidate(
            config=config,
            rounds=[
                tiled(packed, PLAIN, cache, tables[config.blocks["BLOCK_M"]], config, out=out, fresh=True)
            ],
        )
        for config in TILED_CONFIGS
    ]


def prompt_attended(q: Tensor, cache: Paged) -> Tensor:
    """In float32, a head at a time."""
    k, v = (part[cache.block_table[0]].flatten(0, 1).float().transpose(0, 1) for part in (cache.k, cache.v))
    heads = [
        F.scaled_dot_product_attention(q[None, :, head].float(), one_k[None], one_v[None], is_causal=True)[0]
        for head, (one_k, one_v) in enumerate(zip(*grouped(k, v), strict=True))
    ]
    return torch.stack(heads, 1)


def torch_prefill(q: Tensor, cache: Paged, _index: int) -> Tensor:
    """As if the cache were not paged."""
    k, v = (part.view(1, -1, KV_HEADS, DIM).transpose(1, 2) for part in (cache.k, cache.v))
    return F.scaled_dot_product_attention(q[None].transpose(1, 2), k, v, is_causal=True, enable_gqa=True)
