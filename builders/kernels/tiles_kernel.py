# mypy: ignore-errors
"""Attention in tiles of many tokens, for prompts: over the paged cache, and over what a step brings."""

import triton
import triton.language as tl

from builders.kernels.attention_parts_kernel import add, attend, step_rows
from builders.kernels.parts_kernel import await_previous, release_next


@triton.jit
def _over_cache(sums, total, top, queries, query, begin, end, slope, kv, table, k_cache, v_cache, k_scale,
           v_scale, scale, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
           TOKENS: tl.constexpr, WINDOW: tl.constexpr, SLOPED: tl.constexpr, MASKED: tl.constexpr,
           BLOCK_S: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    """Slots from `begin` to `end`, through the block table."""
    for start in tl.range(begin, end, BLOCK_S, num_stages=DEPTH):
        slot = start + tl.arange(0, BLOCK_S)
        sums, total, top = attend(
            sums, total, top, queries, query, slot, slot < end, slope, kv, table, k_cache, v_cache, k_scale,
            v_scale, scale, KV_HEADS, DIM, BLOCK_D, TOKENS, WINDOW, SLOPED, MASKED,
        )  # fmt: skip
    return sums, total, top


@triton.jit
def _over_step(sums, total, top, queries, query, begin, end, slope, k, v, shift, scale,
           STRIDE: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, WINDOW: tl.constexpr,
           SLOPED: tl.constexpr, MASKED: tl.constexpr, BLOCK_S: tl.constexpr,
           DEPTH: tl.constexpr):  # fmt: skip
    """The same where the step has them, `shift` rows further: no block table is waited for."""
    for start in tl.range(begin, end, BLOCK_S, num_stages=DEPTH):
        slot = start + tl.arange(0, BLOCK_S)
        live = slot < end
        keys = step_rows(k, slot + shift, live, STRIDE, DIM, BLOCK_D, MASKED)
        values = step_rows(v, slot + shift, live, STRIDE, DIM, BLOCK_D, MASKED)
        sums, total, top = add(
            sums, total, top, queries, keys, values, query, slot, live, slope, scale, WINDOW, SLOPED, MASKED
        )
    return sums, total, top


@triton.jit
def tiled(
    out,
    q,
    k_cache,
    v_cache,
    tiles,
    block_table,
    slopes,
    k_scale,
    v_scale,
    scale,
    table_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
    Q_STRIDE: tl.constexpr,
    FRESH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
    DEPTH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One head, one tile of at most BLOCK_M tokens that follow each other in one sequence.

    FRESH: q is followed by k and v, as they are in the cache; what the step brings is read there.
    """
    release_next(OVERLAP)
    head = tl.program_id(0)
    kv = head // (HEADS // KV_HEADS)
    member = tl.arange(0, BLOCK_M)
    col = tl.arange(0, BLOCK_D)
    slope = member * 0.0
    if slopes is not None:
        slope += tl.load(slopes + head)
    await_previous(OVERLAP)
    entry = tiles + tl.program_id(1) * 5
    sequence = tl.load(entry).to(tl.int64)
    first = tl.load(entry + 1).to(tl.int32)
    rows = tl.load(entry + 2).to(tl.int32)
    position = tl.load(entry + 3).to(tl.int32)
    brought = tl.load(entry + 4).to(tl.int32)
    if rows == 0:
        return
    inside = (member < rows)[:, None] & (col < DIM)[None, :]
    token = (first + member).to(tl.int64)
    queries = tl.load(q + token[:, None] * Q_STRIDE + head * DIM + col[None, :], mask=inside, other=0.0)
    query = position + member
    table = block_table + sequence * table_stride
    begin = position * 0
    if WINDOW:
        begin = tl.maximum(position + 1 - WINDOW, 0)
    end = position + rows
    cached = end
    if FRESH:
        cached = brought
    # Up to here every row sees every slot.
    open_end = begin
    if not WINDOW:
        open_end = tl.minimum(cached, position + 1) // BLOCK_S * BLOCK_S
    sums = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    sums, total, top = _over_cache(
        sums, total, top, queries, query, begin, open_end, slope, kv, table, k_cache, v_cache, k_scale,
        v_scale, scale, KV_HEADS, DIM, BLOCK_D, TOKENS, WINDOW, slopes is not None, False, BLOCK_S, DEPTH,
    )  # fmt: skip
    sums, total, top = _over_cache(
        sums, total, top, queries, query, open_end, cached, slope, kv, table, k_cache, v_cache, k_scale,
        v_scale, scale, KV_HEADS, DIM, BLOCK_D, TOKENS, WINDOW, slopes is not None, True, BLOCK_S, DEPTH,
    )  # fmt: skip
    if FRESH:
        begin = tl.maximum(begin, brought)
        open_end = begin
        if not WINDOW:
            open_end += (position + 1 - begin) // BLOCK_S * BLOCK_S
        where_k = q + (HEADS + kv) * DIM
        where_v = where_k + KV_HEADS * DIM
        shift = first - position
        sums, total, top = _over_step(
            sums, total, top, queries, query, begin, open_end, slope, where_k, where_v, shift, scale,
            Q_STRIDE, DIM, BLOCK_D, WINDOW, slopes is not None, False, BLOCK_S, DEPTH,
        )  # fmt: skip
        sums, total, top = _over_step(
            sums, total, top, queries, query, open_end, end, slope, where_k, where_v, shift, scale,
            Q_STRIDE, DIM, BLOCK_D, WINDOW, slopes is not None, True, BLOCK_S, DEPTH,
        )  # fmt: skip
    at = out + token[:, None] * HEADS * DIM + head * DIM + col[None, :]
    tl.store(at, (sums / total[:, None]).to(out.dtype.element_ty), mask=inside)
