# mypy: ignore-errors
"""From packed q, k and v: rotation, and the write of k and v to the paged cache."""

import triton
import triton.language as tl

from builders.kernels.parts_kernel import await_previous, clipped, release_next


@triton.jit
def _slot(token, positions, sequences, block_table, table_stride, TOKENS: tl.constexpr):
    """Where in the cache a token belongs; -1 for padding."""
    position = tl.load(positions + token).to(tl.int64)
    page = tl.load(
        block_table + tl.load(sequences + token).to(tl.int64) * table_stride + position // TOKENS,
        mask=position >= 0,
        other=0,
    )
    return tl.where(position >= 0, page.to(tl.int64) * TOKENS + position % TOKENS, -1)


@triton.jit
def _place(
    value,
    col,
    live,
    head,
    token,
    slot,
    q,
    k_cache,
    v_cache,
    k_scale,
    v_scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    Q_STRIDE: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Store columns [heads, cols] of packed heads where each belongs; a negative slot is no slot."""
    kv = (head - HEADS) % KV_HEADS
    is_q = (head < HEADS) | WHOLE
    is_k = (head >= HEADS) & (head < HEADS + KV_HEADS) & (slot >= 0)
    is_v = (head >= HEADS + KV_HEADS) & (slot >= 0)
    at = (slot * KV_HEADS + kv)[:, None] * DIM + col[None, :]
    where_q = token * Q_STRIDE + head[:, None] * DIM + col[None, :]
    tl.store(q + where_q, value.to(q.dtype.element_ty), mask=live & is_q[:, None])
    k = value if k_scale is None else value / tl.load(k_scale)
    tl.store(k_cache + at, k.to(k_cache.dtype.element_ty), mask=live & is_k[:, None])
    v = value if v_scale is None else value / tl.load(v_scale)
    tl.store(v_cache + at, v.to(v_cache.dtype.element_ty), mask=live & is_v[:, None])


@triton.jit
def rotate_and_write(
    q,
    qkv,
    cos,
    sin,
    positions,
    sequences,
    block_table,
    k_cache,
    v_cache,
    k_scale,
    v_scale,
    clip,
    table_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    TOKENS: tl.constexpr,
    CLIPPED: tl.constexpr,
    QKV_STRIDE: tl.constexpr,
    Q_STRIDE: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_H: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """BLOCK_H of the packed heads of one token; HALF is half of the rotated columns, 0 rotates nothing.

    A token at a negative position is padding and writes nothing to the cache. WHOLE: q has room for k and v.
    """
    release_next(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    real = head < HEADS + 2 * KV_HEADS
    await_previous(OVERLAP)
    slot = _slot(token, positions, sequences, block_table, table_stride, TOKENS)
    start = qkv + token * QKV_STRIDE + head[:, None] * DIM
    if HALF > 0:
        col = tl.arange(0, BLOCK_HALF)
        live = real[:, None] & (col < HALF)[None, :]
        first = clipped(tl.load(start + col[None, :], mask=live, other=0.0), clip, CLIPPED)
        second = clipped(tl.load(start + HALF + col[None, :], mask=live, other=0.0), clip, CLIPPED)
        turned = (head < HEADS + KV_HEADS)[:, None]
        c = tl.load(cos + token * HALF + col, mask=col < HALF, other=0.0).to(tl.float32)[None, :]
        s = tl.load(sin + token * HALF + col, mask=col < HALF, other=0.0).to(tl.float32)[None, :]
        low = tl.where(turned, first * c - second * s, first)
        high = tl.where(turned, second * c + first * s, second)
        _place(
            low, col, live, head, token, slot, q, k_cache, v_cache, k_scale, v_scale,
            HEADS, KV_HEADS, DIM, Q_STRIDE, WHOLE,
        )  # fmt: skip
        _place(
            high, HALF + col, live, head, token, slot, q, k_cache, v_cache, k_scale, v_scale,
            HEADS, KV_HEADS, DIM, Q_STRIDE, WHOLE,
        )  # fmt: skip
    if 2 * HALF < DIM:
        col = 2 * HALF + tl.arange(0, BLOCK_REST)
        live = real[:, None] & (col < DIM)[None, :]
        rest = clipped(tl.load(start + col[None, :], mask=live, other=0.0), clip, CLIPPED)
        _place(
            rest, col, live, head, token, slot, q, k_cache, v_cache, k_scale, v_scale,
            HEADS, KV_HEADS, DIM, Q_STRIDE, WHOLE,
        )  # fmt: skip


@triton.jit
def rotate(
    y,
    x,
    cos,
    sin,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    X_STRIDE: tl.constexpr,
    HEAD_STRIDE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """BLOCK_H heads of one token: y [T, HEADS, DIM] = x, its first 2 · HALF columns rotated."""
    release_next(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    col = tl.arange(0, BLOCK_D)
    live = (head < HEADS)[:, None] & (col < DIM)[None, :]
    turned = col < 2 * HALF
    await_previous(OVERLAP)
    start = x + token * X_STRIDE + head[:, None] * HEAD_STRIDE
    value = tl.load(start + col[None, :], mask=live, other=0.0).to(tl.float32)
    partner = tl.where(col < HALF, col + HALF, col - HALF)
    other = tl.load(start + partner[None, :], mask=live & turned[None, :], other=0.0).to(tl.float32)
    c = tl.load(cos + token * HALF + col % HALF, mask=turned, other=1.0).to(tl.float32)
    s = tl.load(sin + token * HALF + col % HALF, mask=turned, other=0.0).to(tl.float32)
    s = tl.where(col < HALF, -s, s)
    at = y + (token * HEADS + head[:, None]) * DIM + col[None, :]
    tl.store(at, (value * c[None, :] + other * s[None, :]).to(y.dtype.element_ty), mask=live)


@triton.jit
def write(
    k,
    v,
    positions,
    sequences,
    block_table,
    k_cache,
    v_cache,
    k_scale,
    v_scale,
    table_stride,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    K_STRIDE: tl.constexpr,
    V_STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """All kv heads of one token, WIDTH columns, to the cache; nothing for a token at a negative position."""
    release_next(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)
    await_previous(OVERLAP)
    slot = _slot(token, positions, sequences, block_table, table_stride, TOKENS)
    live = (col < WIDTH) & (slot >= 0)
    new_k = tl.load(k + token * K_STRIDE + col, mask=live, other=0.0).to(tl.float32)
    new_v = tl.load(v + token * V_STRIDE + col, mask=live, other=0.0).to(tl.float32)
    if k_scale is not None:
        new_k = new_k / tl.load(k_scale)
    if v_scale is not None:
        new_v = new_v / tl.load(v_scale)
    tl.store(k_cache + slot * WIDTH + col, new_k.to(k_cache.dtype.element_ty), mask=live)
    tl.store(v_cache + slot * WIDTH + col, new_v.to(v_cache.dtype.element_ty), mask=live)
