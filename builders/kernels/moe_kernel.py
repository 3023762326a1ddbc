# mypy: ignore-errors
"""Mixture of experts: routing; one pair at a time for few tokens; pairs sorted by expert for many.

A pair is a token and one of the experts that it chose: pair = token · TOP_K + choice. Experts of other ranks
are left out of the sum.
"""

import triton
import triton.language as tl

from builders.kernels.linear_parts_kernel import columns, weight_tile
from builders.kernels.parts_kernel import activated, await_previous, release_next


@triton.jit
def route(
    share,
    chosen,
    logits,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_TOP: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """The best experts of one token and their shares; of equals, those that come first."""
    release_next(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, BLOCK_E)
    choice = tl.arange(0, BLOCK_TOP)
    await_previous(OVERLAP)
    left = tl.load(logits + token * EXPERTS + expert, mask=expert < EXPERTS, other=float("-inf")).to(
        tl.float32
    )
    top = tl.max(left, 0)
    total = tl.sum(tl.exp(left - top), 0)
    shares = tl.zeros([BLOCK_TOP], tl.float32)
    found = tl.zeros([BLOCK_TOP], tl.int32)
    for place in tl.static_range(TOP_K):
        best = tl.argmax(left, 0)
        shares = tl.where(choice == place, tl.exp(tl.max(left, 0) - top), shares)
        found = tl.where(choice == place, best, found)
        left = tl.where(expert == best, float("-inf"), left)
    if RENORMALIZE:
        total = tl.sum(shares, 0)
    at = token * TOP_K + choice
    tl.store(share + at, shares / total, mask=choice < TOP_K)
    tl.store(chosen + at, found, mask=choice < TOP_K)


@triton.jit
def few_up(
    hidden,
    x,
    weight,
    chosen,
    first_expert,
    TOP_K: tl.constexpr,
    EXPERTS: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    ACT: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One pair: hidden [pairs, N] = act(expert's up · x)."""
    release_next(OVERLAP)
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    FULL: tl.constexpr = (N % BLOCK_N == 0) and (BLOCK_K * STEPS == K)
    first_row = tl.program_id(0) * BLOCK_N
    pair = tl.program_id(1).to(tl.int64)
    row = first_row + tl.arange(0, BLOCK_N)
    live = row < N
    await_previous(OVERLAP)
    expert = tl.load(chosen + pair).to(tl.int64) - tl.load(first_expert).to(tl.int64)
    if expert < 0 or expert >= EXPERTS:
        return
    start = weight + (expert * (2 if GATED else 1) * N + first_row) * K
    token = x + pair // TOP_K * K
    sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    ups = tl.zeros([BLOCK_N, BLOCK_K], tl.float32) if GATED else 0.0
    for step in tl.static_range(STEPS):
        value = columns(token, step * BLOCK_K + tl.arange(0, BLOCK_K), K, BLOCK_K * STEPS)[None, :]
        sums += weight_tile(start, step, live, K, BLOCK_N, BLOCK_K, FULL, True).to(tl.float32) * value
        if GATED:
            ups += (
                weight_tile(start + N * K, step, live, K, BLOCK_N, BLOCK_K, FULL, True).to(tl.float32) * value
            )
    out = activated(tl.sum(sums, 1), ACT)
    if GATED:
        out *= tl.sum(ups, 1)
    tl.store(hidden + pair * N + row, out.to(hidden.dtype.element_ty), mask=live)


@triton.jit
def few_down(
    y,
    hidden,
    weight,
    residual,
    share,
    chosen,
    first_expert,
    TOP_K: tl.constexpr,
    EXPERTS: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One token: y [T, N] = sum over its experts here of share · (expert's down · hidden) + residual."""
    release_next(OVERLAP)
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    FULL: tl.constexpr = (N % BLOCK_N == 0) and (BLOCK_K * STEPS == K)
    first_row = tl.program_id(0) * BLOCK_N
    token = tl.program_id(1).to(tl.int64)
    row = first_row + tl.arange(0, BLOCK_N)
    live = row < N
    await_previous(OVERLAP)
    first = tl.load(first_expert).to(tl.int64)
    sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for choice in tl.static_range(TOP_K):
        pair = token * TOP_K + choice
        expert = tl.load(chosen + pair).to(tl.int64) - first
        if expert >= 0 and expert < EXPERTS:
            start = weight + (expert * N + first_row) * K
            part = tl.load(share + pair)
            for step in tl.static_range(STEPS):
                col = step * BLOCK_K + tl.arange(0, BLOCK_K)
                value = columns(hidden + pair * K, col, K, BLOCK_K * STEPS) * part
                tile = weight_tile(start, step, live, K, BLOCK_N, BLOCK_K, FULL, True)
                sums += tile.to(tl.float32) * value[None, :]
    out = tl.sum(sums, 1)
    if residual is not None:
        out += tl.load(residual + token * N + row, mask=live, other=0.0).to(tl.float32)
    tl.store(y + token * N + row, out.to(y.dtype.element_ty), mask=live)


@triton.jit
def sort(
    order,
    tiles,
    chosen,
    first_expert,
    pairs,
    table_rows,
    EXPERTS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_M: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One expert held here: its pairs to their places in `order`, and its tiles (expert, first, rows).

    Every program counts all pairs, so that none has to wait for another. The last ends the table.
    """
    release_next(OVERLAP)
    mine = tl.program_id(0)
    every = tl.arange(0, BLOCK_E)
    counts = tl.zeros([BLOCK_E], tl.int32)
    await_previous(OVERLAP)
    first = tl.load(first_expert).to(tl.int32)
    for start in range(0, pairs, BLOCK_P):
        pair = start + tl.arange(0, BLOCK_P)
        expert = tl.load(chosen + pair, mask=pair < pairs, other=-(1 << 30)) - first
        counts += tl.sum((expert[:, None] == every[None, :]).to(tl.int32), 0)
    counts = tl.where(every < EXPERTS, counts, 0)
    needed = (counts + BLOCK_M - 1) // BLOCK_M
    begin = tl.sum(tl.where(every < mine, counts, 0), 0)
    own = tl.sum(tl.where(every == mine, counts, 0), 0)
    place = begin
    for start in range(0, pairs, BLOCK_P):
        pair = start + tl.arange(0, BLOCK_P)
        expert = tl.load(chosen + pair, mask=pair < pairs, other=-(1 << 30)) - first
        is_mine = (expert == mine).to(tl.int32)
        tl.store(order + place + tl.cumsum(is_mine, 0) - is_mine, pair, mask=is_mine > 0)
        place += tl.sum(is_mine, 0)
    tile = tl.sum(tl.where(every < mine, needed, 0), 0)
    for done in range(0, own, BLOCK_M):
        tl.store(tiles + tile * 3, mine)
        tl.store(tiles + tile * 3 + 1, begin + done)
        tl.store(tiles + tile * 3 + 2, tl.minimum(own - done, BLOCK_M))
        tile += 1
    if mine == EXPERTS - 1:
        for empty in range(tile, table_rows):
            tl.store(tiles + empty * 3 + 2, 0)


@triton.jit
def grouped(
    y,
    x,
    weight,
    order,
    tiles,
    TOP_K: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    ACT: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DEPTH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One tile of pairs of one expert: y [pairs, N] = act(expert's weight · x[pair // TOP_K])."""
    release_next(OVERLAP)
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    FULL: tl.constexpr = (N % BLOCK_N == 0) and (BLOCK_K * STEPS == K)
    first_row = tl.program_id(1) * BLOCK_N
    member = tl.arange(0, BLOCK_M)
    row = first_row + tl.arange(0, BLOCK_N)
    live = row < N
    await_previous(OVERLAP)
    entry = tiles + tl.program_id(0) * 3
    rows = tl.load(entry + 2)
    if rows == 0:
        return
    start = weight + (tl.load(entry).to(tl.int64) * (2 if GATED else 1) * N + first_row) * K
    inside = member < rows
    pair = tl.load(order + tl.load(entry + 1) + member, mask=inside, other=0).to(tl.int64)
    source = x + (pair // TOP_K * K)[:, None]
    sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    ups = tl.zeros([BLOCK_N, BLOCK_M], tl.float32) if GATED else 0.0
    for step in tl.range(0, STEPS, num_stages=DEPTH):
        col = step * BLOCK_K + tl.arange(0, BLOCK_K)
        value = tl.trans(tl.load(source + col[None, :], mask=inside[:, None] & (col < K)[None, :], other=0.0))
        tile = weight_tile(start, step, live, K, BLOCK_N, BLOCK_K, FULL, False)
        sums = tl.dot(tile, value, sums, input_precision="ieee")
        if GATED:
            tile = weight_tile(start + N * K, step, live, K, BLOCK_N, BLOCK_K, FULL, False)
            ups = tl.dot(tile, value, ups, input_precision="ieee")
    out = activated(sums, ACT)
    if GATED:
        out *= ups
    kept = live[:, None] & inside[None, :]
    tl.store(y + (pair * N)[None, :] + row[:, None], out.to(y.dtype.element_ty), mask=kept)


@triton.jit
def combine(
    y,
    parts,
    residual,
    share,
    chosen,
    first_expert,
    TOP_K: tl.constexpr,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One token: y [T, WIDTH] = sum over its experts here of share · its pair's part + residual."""
    release_next(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = col < WIDTH
    await_previous(OVERLAP)
    first = tl.load(first_expert).to(tl.int32)
    out = tl.zeros([BLOCK], tl.float32)
    for choice in tl.static_range(TOP_K):
        pair = token * TOP_K + choice
        expert = tl.load(chosen + pair) - first
        held = (expert >= 0) & (expert < EXPERTS)
        part = tl.load(parts + pair * WIDTH + col, mask=live & held, other=0.0)
        out += part.to(tl.float32) * tl.load(share + pair)
    if residual is not None:
        out += tl.load(residual + token * WIDTH + col, mask=live, other=0.0).to(tl.float32)
    tl.store(y + token * WIDTH + col, out.to(y.dtype.element_ty), mask=live)
