# mypy: ignore-errors
"""Attention over the paged cache in tiles of many tokens, for prompts."""

import triton
import triton.language as tl

from builders.kernels.attention_parts_kernel import attend
from builders.kernels.parts_kernel import await_previous, release_next


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
        sums, total, top = attend(
            sums, total, top, queries, query, slot, slot < end, slope, kv, table, k_cache, v_cache, k_scale,
            v_scale, scale, KV_HEADS, DIM, BLOCK_D, TOKENS, WINDOW, slopes is not None, False,
        )  # fmt: skip
    for start in tl.range(open_end, end, BLOCK_S, num_stages=DEPTH):
        slot = start + tl.arange(0, BLOCK_S)
        sums, total, top = attend(
            sums, total, top, queries, query, slot, slot < end, slope, kv, table, k_cache, v_cache, k_scale,
            v_scale, scale, KV_HEADS, DIM, BLOCK_D, TOKENS, WINDOW, slopes is not None, True,
        )  # fmt: skip
    at = out + token[:, None] * HEADS * DIM + head * DIM + col[None, :]
    tl.store(at, (sums / total[:, None]).to(out.dtype.element_ty), mask=inside)
