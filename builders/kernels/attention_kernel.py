# mypy: ignore-errors
"""Attention over the paged cache for one token at a time, split over its past."""

import triton
import triton.language as tl

from builders.kernels.attention_parts_kernel import LOG2_E, add, attend, cached_rows
from builders.kernels.parts_kernel import await_previous, clipped, last_to_arrive, release_next, turned


@triton.jit
def _joined(head_out, partial, weight, kept, mask_col, col, used, DIM: tl.constexpr, SPLITS: tl.constexpr,
            BLOCK_D: tl.constexpr):  # fmt: skip
    """One head: the sums of its splits, weighted by how much each saw, to its row of the output."""
    split = tl.arange(0, SPLITS)
    here = split < used
    top = tl.load(weight + split * 2, mask=here, other=float("-inf"), cache_modifier=".cg")
    total = tl.load(weight + split * 2 + 1, mask=here, other=0.0, cache_modifier=".cg")
    share = tl.where(here, tl.exp2(top - tl.max(top, 0)), 0.0)
    at = partial + split[:, None] * BLOCK_D + col[None, :]
    sums = tl.load(at, mask=here[:, None] & mask_col[None, :], other=0.0, cache_modifier=".cg")
    out = tl.sum(sums * share[:, None], 0) / tl.sum(total * share, 0)
    tl.store(head_out + col, out.to(head_out.dtype.element_ty), mask=mask_col & kept)


@triton.jit
def _extent(
    position, SPLITS: tl.constexpr, BLOCK_S: tl.constexpr, WINDOW: tl.constexpr, PACKED: tl.constexpr
):
    """What of the cache a token reads: its first slot, the end, the slots of a split, and how many splits.

    A packed token's own slot is not read: it brings its key and value along.
    """
    first = position * 0
    if WINDOW:
        first = tl.maximum(position + 1 - WINDOW, 0)
    end = position if PACKED else position + 1
    tiles = tl.cdiv(end - first, BLOCK_S)
    part = tl.maximum(tl.cdiv(tiles, SPLITS), 1) * BLOCK_S
    return first, end, part, tl.maximum(tl.cdiv(end - first, part), 1)


@triton.jit
def _kept(value, cache, scale, at, mask):
    """Store a new key or value; what later steps will read there, in float32."""
    stored = value if scale is None else value / tl.load(scale)
    stored = stored.to(cache.dtype.element_ty)
    tl.store(cache + at, stored, mask=mask)
    read = stored.to(tl.float32)
    return read if scale is None else read * tl.load(scale)


@triton.jit
def decode(
    out,
    q,
    k_cache,
    v_cache,
    positions,
    sequences,
    block_table,
    slopes,
    k_scale,
    v_scale,
    cos,
    sin,
    partial,
    weight,
    counter,
    scale,
    clip,
    table_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
    Q_STRIDE: tl.constexpr,
    PACKED: tl.constexpr,
    HALF: tl.constexpr,
    CLIPPED: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SPLITS: tl.constexpr,
    JOINED: tl.constexpr,
    EARLY: tl.constexpr,
    DEPTH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One token, the query heads of one kv head, one split of what the token sees.

    PACKED: q is followed by k and v, none of them rotated; the last split writes the new k and v to the
    cache, so every sequence has one token in the step. EARLY: the first tile is read while the kernel before
    ends. JOINED: the split that comes last puts the parts together; otherwise `join` does, after.
    """
    release_next(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    kv = tl.program_id(1)
    split = tl.program_id(2)
    member = tl.arange(0, BLOCK_G)
    head = kv * GROUP + member
    col = tl.arange(0, BLOCK_D)
    inside = (member < GROUP)[:, None] & (col < DIM)[None, :]
    slope = member * 0.0
    if slopes is not None:
        slope = tl.load(slopes + head, mask=member < GROUP, other=0.0)
    if not PACKED:
        await_previous(OVERLAP)
    # What a step brings, and what is in the cache of tokens before it, is there before its first kernel.
    position = tl.load(positions + token).to(tl.int32)
    table = block_table + tl.load(sequences + token).to(tl.int64) * table_stride
    first, end, part, used = _extent(position, SPLITS, BLOCK_S, WINDOW, PACKED)
    start = first + split * part
    end = tl.minimum(start + part, end)
    where_out = out + token * HEADS * DIM + head[:, None] * DIM + col[None, :]
    if position < 0:
        await_previous(OVERLAP)
        if split == 0:
            tl.store(where_out, tl.zeros([BLOCK_G, BLOCK_D], out.dtype.element_ty), mask=inside)
        return
    if split >= used:
        return
    query = tl.zeros([BLOCK_G], tl.int32) + position
    sums = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    top = tl.full([BLOCK_G], float("-inf"), tl.float32)
    if PACKED:
        last = split == used - 1
        page = tl.load(table + position // TOKENS).to(tl.int64)
        if EARLY:
            slot = start + tl.arange(0, BLOCK_S)
            live = slot < end
            wanted: tl.constexpr = q.dtype.element_ty
            k = cached_rows(
                k_cache, k_scale, slot, live, kv, table, wanted, KV_HEADS, DIM, BLOCK_D, TOKENS, True
            )
            v = cached_rows(
                v_cache, v_scale, slot, live, kv, table, wanted, KV_HEADS, DIM, BLOCK_D, TOKENS, True
            )
        await_previous(OVERLAP)
        where_q = q + token * Q_STRIDE + head[:, None] * DIM
        where_k = q + token * Q_STRIDE + (HEADS + kv) * DIM
        c, s = cos, sin
        if HALF > 0:
            c, s = cos + token * HALF, sin + token * HALF
        new_v = clipped(tl.load(where_k + KV_HEADS * DIM + col, mask=col < DIM, other=0.0), clip, CLIPPED)
        new_k = turned(where_k, col, col < DIM, c, s, clip, HALF, CLIPPED)
        rows = turned(where_q, col[None, :], inside, c, s, clip, HALF, CLIPPED).to(q.dtype.element_ty)
        if EARLY:
            sums, total, top = add(
                sums,
                total,
                top,
                rows,
                k,
                v,
                query,
                slot,
                live,
                slope,
                scale,
                WINDOW,
                slopes is not None,
                True,
            )
            start += BLOCK_S
    else:
        rows = tl.load(q + token * Q_STRIDE + head[:, None] * DIM + col[None, :], mask=inside, other=0.0)
    for at in tl.range(start, end, BLOCK_S, num_stages=DEPTH):
        slot = at + tl.arange(0, BLOCK_S)
        sums, total, top = attend(
            sums, total, top, rows, query, slot, slot < end, slope, kv, table, k_cache, v_cache, k_scale,
            v_scale, scale, KV_HEADS, DIM, BLOCK_D, TOKENS, WINDOW, slopes is not None, True,
        )  # fmt: skip
    if PACKED:
        at = ((page * TOKENS + position % TOKENS) * KV_HEADS + kv) * DIM + col
        new_k = _kept(new_k, k_cache, k_scale, at, (col < DIM) & last).to(rows.dtype).to(tl.float32)
        new_v = _kept(new_v, v_cache, v_scale, at, (col < DIM) & last)
        own = tl.sum(rows.to(tl.float32) * new_k[None, :], 1) * (scale * LOG2_E)
        own = tl.where(last, own, float("-inf"))
        new_top = tl.maximum(top, own)
        weight_own = tl.exp2(own - new_top)
        fade = tl.exp2(top - new_top)
        total = total * fade + weight_own
        sums = sums * fade[:, None] + weight_own[:, None] * new_v[None, :]
        top = new_top
    if SPLITS == 1:
        tl.store(where_out, (sums / total[:, None]).to(out.dtype.element_ty), mask=inside)
    else:
        place = (token * HEADS + head) * SPLITS + split
        tl.store(partial + place[:, None] * BLOCK_D + col[None, :], sums, mask=inside)
        tl.store(weight + place * 2, top, mask=member < GROUP)
        tl.store(weight + place * 2 + 1, total, mask=member < GROUP)
        if JOINED:
            if last_to_arrive(counter + token * KV_HEADS + kv, used):
                for index in range(GROUP):
                    row = token * HEADS + kv * GROUP + index
                    _joined(
                        out + row * DIM, partial + row * SPLITS * BLOCK_D, weight + row * SPLITS * 2, True,
                        col < DIM, col, used, DIM, SPLITS, BLOCK_D,
                    )  # fmt: skip


@triton.jit
def join(
    out,
    positions,
    partial,
    weight,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SPLITS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One head of one token: its splits put together."""
    release_next(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    row = token * HEADS + tl.program_id(1)
    col = tl.arange(0, BLOCK_D)
    await_previous(OVERLAP)
    position = tl.load(positions + token).to(tl.int32)
    if position >= 0:
        _, _, _, used = _extent(position, SPLITS, BLOCK_S, WINDOW, PACKED)
        _joined(
            out + row * DIM, partial + row * SPLITS * BLOCK_D, weight + row * SPLITS * 2, True,
            col < DIM, col, used, DIM, SPLITS, BLOCK_D,
        )  # fmt: skip
