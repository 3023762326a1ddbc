# mypy: ignore-errors
"""Pieces of attention: reading the paged cache, and the running sums over tiles of it."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def cached_rows(cache, scale, slot, live, kv, table, wanted, KV_HEADS: tl.constexpr, DIM: tl.constexpr,
          BLOCK_D: tl.constexpr, TOKENS: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """[slots, BLOCK_D] of one kv head's keys or values, in the type that is wanted.

    MASKED: not every slot is live.
    """
    col = tl.arange(0, BLOCK_D)
    if MASKED:
        page = tl.load(table + slot // TOKENS, mask=live, other=0).to(tl.int64)
    else:
        page = tl.load(table + slot // TOKENS).to(tl.int64)
    row = (page * TOKENS + slot % TOKENS) * KV_HEADS + kv
    if BLOCK_D == DIM and not MASKED:
        found = tl.load(cache + row[:, None] * DIM + col[None, :])
    elif BLOCK_D == DIM:
        found = tl.load(cache + row[:, None] * DIM + col[None, :], mask=live[:, None], other=0.0)
    else:
        mask = live[:, None] & (col < DIM)[None, :]
        found = tl.load(cache + row[:, None] * DIM + col[None, :], mask=mask, other=0.0)
    if scale is not None:
        found = found.to(tl.float32) * tl.load(scale)
    return found.to(wanted)


@triton.jit
def step_rows(start, row, live, STRIDE: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
          MASKED: tl.constexpr):  # fmt: skip
    """[rows, BLOCK_D] of one kv head's keys or values as the step has them, token after token."""
    col = tl.arange(0, BLOCK_D)
    at = start + row[:, None].to(tl.int64) * STRIDE + col[None, :]
    if BLOCK_D == DIM and not MASKED:
        return tl.load(at)
    return tl.load(at, mask=live[:, None] & (col < DIM)[None, :], other=0.0)


@triton.jit
def attend(sums, total, top, q, query, slot, live, slope, kv, table, k_cache, v_cache, k_scale, v_scale,
            scale, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, TOKENS: tl.constexpr,
            WINDOW: tl.constexpr, SLOPED: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """One tile of slots, added to the running sums [rows, D], their total weight and their top score.

    Scores are in powers of two. MASKED: some row may not see some slot.
    """
    k = cached_rows(k_cache, k_scale, slot, live, kv, table, q.dtype, KV_HEADS, DIM, BLOCK_D, TOKENS, MASKED)
    v = cached_rows(v_cache, v_scale, slot, live, kv, table, q.dtype, KV_HEADS, DIM, BLOCK_D, TOKENS, MASKED)
    return add(sums, total, top, q, k, v, query, slot, live, slope, scale, WINDOW, SLOPED, MASKED)


@triton.jit
def add(sums, total, top, q, k, v, query, slot, live, slope, scale, WINDOW: tl.constexpr,
         SLOPED: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """The same for keys and values that are there; `scale` is above 0."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    factor = scale * LOG2_E
    distance = query[:, None] - slot[None, :]
    if SLOPED:
        scores = scores * factor - slope[:, None] * LOG2_E * distance.to(tl.float32)
        factor = 1.0
    if MASKED:
        seen = (distance >= 0) & live[None, :]
        if WINDOW:
            seen = seen & (distance < WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1) * factor)
    # A row that has seen nothing yet keeps -inf, and -inf minus itself must not be taken.
    base = tl.where(new_top == float("-inf"), 0.0, new_top) if MASKED else new_top
    weights = tl.exp2(scores * factor - base[:, None])  # one instruction multiplies and subtracts
    fade = tl.exp2(top - base)
    total = total * fade + tl.sum(weights, 1)
    sums = tl.dot(weights.to(v.dtype), v, sums * fade[:, None], input_precision="ieee")
    return sums, total, new_top
