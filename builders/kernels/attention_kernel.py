# mypy: ignore-errors
"""Attention over the paged cache: one token at a time, split over its past; or tiles of many tokens."""

import triton
import triton.language as tl

from builders.kernels.parts_kernel import await_previous, last_to_arrive, release_next

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _rows(cache, scale, slot, live, kv, table, wanted, KV_HEADS: tl.constexpr, DIM: tl.constexpr,
          BLOCK_D: tl.constexpr, TOKENS: tl.constexpr):  # fmt: skip
    """[slots, BLOCK_D] of one kv head's keys or values, in the type that is wanted."""
    col = tl.arange(0, BLOCK_D)
    page = tl.load(table + slot // TOKENS, mask=live, other=0).to(tl.int64)
    row = (page * TOKENS + slot % TOKENS) * KV_HEADS + kv
    if BLOCK_D == DIM:
        found = tl.load(cache + row[:, None] * DIM + col[None, :], mask=live[:, None], other=0.0)
    else:
        mask = live[:, None] & (col < DIM)[None, :]
        found = tl.load(cache + row[:, None] * DIM + col[None, :], mask=mask, other=0.0)
    if scale is not None:
        found = found.to(tl.float32) * tl.load(scale)
    return found.to(wanted)


@triton.jit
def _attend(sums, total, top, q, query, slot, live, slope, kv, table, k_cache, v_cache, k_scale, v_scale,
            scale, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, TOKENS: tl.constexpr,
            WINDOW: tl.constexpr, SLOPED: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """One tile of slots, added to the running sums [rows, D], their total weight and their top score.

    Scores are in powers of two. MASKED: some row may not see some slot.
    """
    k = _rows(k_cache, k_scale, slot, live, kv, table, q.dtype, KV_HEADS, DIM, BLOCK_D, TOKENS)
    v = _rows(v_cache, v_scale, slot, live, kv, table, q.dtype, KV_HEADS, DIM, BLOCK_D, TOKENS)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * _LOG2_E)
    distance = query[:, None] - slot[None, :]
    if SLOPED:
        scores -= slope[:, None] * _LOG2_E * distance.to(tl.float32)
    if MASKED:
        seen = (distance >= 0) & live[None, :]
        if WINDOW:
            seen = seen & (distance < WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    # A row that has seen nothing yet keeps -inf, and -inf minus itself must not be taken.
    base = tl.where(new_top == float("-inf"), 0.0, new_top) if MASKED else new_top
    weights = tl.exp2(scores - base[:, None])
    fade = tl.exp2(top - base)
    total = total * fade + tl.sum(weights, 1)
    sums = tl.dot(weights.to(v.dtype), v, sums * fade[:, None], input_precision="ieee")
    return sums, total, new_top


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
def _extent(position, SPLITS: tl.constexpr, BLOCK_S: tl.constexpr, WINDOW: tl.constexpr):
    """What a token sees: its first slot, the slots of a split, and how many splits have any."""
    first = position * 0
    if WINDOW:
        first = tl.maximum(position + 1 - WINDOW, 0)
    tiles = tl.cdiv(position + 1 - first, BLOCK_S)
    part = tl.maximum(tl.cdiv(tiles, SPLITS), 1) * BLOCK_S
    return first, part, tl.cdiv(position + 1 - first, part)


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
    partial,
    weight,
    counter,
    scale,
    table_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
    Q_STRIDE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SPLITS: tl.constexpr,
    JOINED: tl.constexpr,
    DEPTH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One token, the query heads of one kv head, one split of what the token sees.

    JOINED: the split that comes last puts the parts together; otherwise `join` does, after.
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
    await_previous(OVERLAP)
    position = tl.load(positions + token).to(tl.int32)
    first, part, used = _extent(position, SPLITS, BLOCK_S, WINDOW)
    where_out = out + token * HEADS * DIM + head[:, None] * DIM + col[None, :]
    if position < 0:
        if split == 0:
            tl.store(where_out, tl.zeros([BLOCK_G, BLOCK_D], out.dtype.element_ty), mask=inside)
        return
    if split >= used:
        return
    rows = tl.load(q + token * Q_STRIDE + head[:, None] * DIM + col[None, :], mask=inside, other=0.0)
    table = block_table + tl.load(sequences + token).to(tl.int64) * table_stride
    end = tl.minimum(first + (split + 1) * part, position + 1)
    query = tl.zeros([BLOCK_G], tl.int32) + position
    sums = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    top = tl.full([BLOCK_G], float("-inf"), tl.float32)
    for start in tl.range(first + split * part, end, BLOCK_S, num_stages=DEPTH):
        slot = start + tl.arange(0, BLOCK_S)
        sums, total, top = _attend(
            sums, total, top, rows, query, slot, slot < end, slope, kv, table, k_cache, v_cache, k_scale,
            v_scale, scale, KV_HEADS, DIM, BLOCK_D, TOKENS, WINDOW, slopes is not None, True,
        )  # fmt: skip
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
        _, _, used = _extent(position, SPLITS, BLOCK_S, WINDOW)
        _joined(
            out + row * DIM, partial + row * SPLITS * BLOCK_D, weight + row * SPLITS * 2, True,
            col < DIM, col, used, DIM, SPLITS, BLOCK_D,
        )  # fmt: skip


@triton.jit
def tiled(
    out,
    q,
    k_cache,
    v_cache,
    tiles,
    positions,
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
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
    DEPTH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One head, one tile of at most BLOCK_M tokens that follow each other in one sequence."""
    release_next(OVERLAP)
    head = tl.program_id(0)
    kv = head // (HEADS // KV_HEADS)
    member = tl.arange(0, BLOCK_M)
    col = tl.arange(0, BLOCK_D)
    slope = member * 0.0
    if slopes is not None:
        slope += tl.load(slopes + head)
    await_previous(OVERLAP)
    entry = tiles + tl.program_id(1) * 3
    sequence = tl.load(entry).to(tl.int64)
    first = tl.load(entry + 1).to(tl.int64)
    rows = tl.load(entry + 2).to(tl.int32)
    if rows == 0:
        return
    inside = (member < rows)[:, None] & (col < DIM)[None, :]
    token = first + member
    queries = tl.load(q + token[:, None] * Q_STRIDE + head * DIM + col[None, :], mask=inside, other=0.0)
    position = tl.load(positions + first).to(tl.int32)
    query = position + member
    table = block_table + sequence * table_stride
    begin = position * 0
    if WINDOW:
        begin = tl.maximum(position + 1 - WINDOW, 0)
    end = position + rows
    # Up to here every row sees every slot.
    open_end = begin + (position + 1 - begin) // BLOCK_S * BLOCK_S
    if WINDOW:
        open_end = begin
    sums = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for start in tl.range(begin, open_end, BLOCK_S, num_stages=DEPTH):
        slot = start + tl.arange(0, BLOCK_S)
        sums, total, top = _attend(
            sums, total, top, queries, query, slot, slot < end, slope, kv, table, k_cache, v_cache, k_scale,
            v_scale, scale, KV_HEADS, DIM, BLOCK_D, TOKENS, WINDOW, slopes is not None, False,
        )  # fmt: skip
    for start in tl.range(open_end, end, BLOCK_S, num_stages=DEPTH):
        slot = start + tl.arange(0, BLOCK_S)
        sums, total, top = _attend(
            sums, total, top, queries, query, slot, slot < end, slope, kv, table, k_cache, v_cache, k_scale,
            v_scale, scale, KV_HEADS, DIM, BLOCK_D, TOKENS, WINDOW, slopes is not None, True,
        )  # fmt: skip
    at = out + token[:, None] * HEADS * DIM + head * DIM + col[None, :]
    tl.store(at, (sums / total[:, None]).to(out.dtype.element_ty), mask=inside)
