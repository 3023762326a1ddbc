# mypy: ignore-errors
"""Linear layers for few rows, where reading the weights is the whole cost."""

import triton
import triton.language as tl

from builders.kernels.linear_parts_kernel import columns, finished, normed, weight_tile
from builders.kernels.parts_kernel import await_previous, last_to_arrive, release_next


@triton.jit
def _statistics(x, K: tl.constexpr, eps, CENTERED: tl.constexpr, BLOCK: tl.constexpr):
    """Mean (0 where not centered) and reciprocal deviation of a row."""
    col = tl.arange(0, BLOCK)
    value = tl.load(x + col, mask=col < K, other=0.0).to(tl.float32)
    mean = 0.0
    if CENTERED:
        mean = tl.sum(value, 0) / K
        value = tl.where(col < K, value - mean, 0.0)
    return mean, tl.rsqrt(tl.sum(value * value, 0) / K + eps)


@triton.jit
def gemv(
    y,
    x,
    weight,
    bias,
    residual,
    gain,
    shift,
    partial,
    counter,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    NORM: tl.constexpr,
    ONE_PLUS: tl.constexpr,
    ACT: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DEPTH: tl.constexpr,
    SPLIT: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One row: y [N] = epilogue(weight · norm(x)).

    DEPTH tiles of weights are always on their way to registers, the first before x is there.
    """
    release_next(OVERLAP)
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    PART: tl.constexpr = (STEPS + SPLIT - 1) // SPLIT
    FULL: tl.constexpr = (N % BLOCK_N == 0) and (BLOCK_K * PART * SPLIT == K)
    # A root of squares summed on the way is free, unless the sum is shared among programs.
    LATE: tl.constexpr = NORM == "rms" and SPLIT == 1
    pid = tl.program_id(0)
    split = tl.program_id(1)
    row = pid * BLOCK_N + tl.arange(0, BLOCK_N)
    live = row < N
    start = weight + pid.to(tl.int64) * BLOCK_N * K
    gates = ()
    ups = ()
    for i in tl.static_range(DEPTH):
        if i < PART:
            gates = gates + (weight_tile(start, split * PART + i, live, K, BLOCK_N, BLOCK_K, FULL, True),)
            if GATED:
                ups = ups + (
                    weight_tile(start + N * K, split * PART + i, live, K, BLOCK_N, BLOCK_K, FULL, True),
                )
    await_previous(OVERLAP)
    mean = 0.0
    scale = 1.0
    if NORM != "none" and not LATE:
        mean, scale = _statistics(x, K, eps, NORM == "layer", triton.next_power_of_2(K))
    squares = tl.zeros([BLOCK_K], tl.float32)
    sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    up_sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32) if GATED else 0.0
    for i in tl.static_range(PART):
        if i + DEPTH < PART:
            gates = gates + (
                weight_tile(start, split * PART + i + DEPTH, live, K, BLOCK_N, BLOCK_K, FULL, True),
            )
            if GATED:
                ups = ups + (
                    weight_tile(
                        start + N * K, split * PART + i + DEPTH, live, K, BLOCK_N, BLOCK_K, FULL, True
                    ),
                )
        col = (split * PART + i) * BLOCK_K + tl.arange(0, BLOCK_K)
        value = columns(x, col, K, BLOCK_K * PART * SPLIT)
        if LATE:
            squares += value * value
        if NORM != "none":
            value = normed(value, mean, scale, gain, shift, col, K, BLOCK_K * PART * SPLIT, ONE_PLUS)
        sums += gates[i].to(tl.float32) * value[None, :]
        if GATED:
            up_sums += ups[i].to(tl.float32) * value[None, :]
    out = tl.sum(sums, 1)
    up = tl.sum(up_sums, 1) if GATED else 0.0
    if LATE:
        scale = tl.rsqrt(tl.sum(squares, 0) / K + eps)
        out *= scale
        if GATED:
            up *= scale
    if SPLIT == 1:
        finished(out, up, 0, row, y, bias, residual, live, N, ACT, GATED)
    else:
        at = partial + split * N + row
        tl.store(at, out, mask=live)
        if GATED:
            tl.store(at + SPLIT * N, up, mask=live)
        if last_to_arrive(counter + pid, SPLIT):
            part = tl.arange(0, SPLIT)
            every = partial + part[:, None] * N + row[None, :]
            out = tl.sum(tl.load(every, mask=live[None, :], other=0.0, cache_modifier=".cg"), 0)
            if GATED:
                up = tl.sum(
                    tl.load(every + SPLIT * N, mask=live[None, :], other=0.0, cache_modifier=".cg"), 0
                )
            finished(out, up, 0, row, y, bias, residual, live, N, ACT, GATED)


@triton.jit
def _row_statistics(
    x, rows, K: tl.constexpr, eps, CENTERED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Means and reciprocal deviations of BLOCK_M rows."""
    row = tl.arange(0, BLOCK_M)
    mean = tl.zeros([BLOCK_M], tl.float32)
    squares = tl.zeros([BLOCK_M], tl.float32)
    at = x + row[:, None] * K + tl.arange(0, BLOCK_K)[None, :]
    if CENTERED:
        for k in range(0, K, BLOCK_K):
            live = (row < rows)[:, None] & (k + tl.arange(0, BLOCK_K) < K)[None, :]
            mean += tl.sum(tl.load(at + k, mask=live, other=0.0).to(tl.float32), 1)
        mean /= K
    for k in range(0, K, BLOCK_K):
        live = (row < rows)[:, None] & (k + tl.arange(0, BLOCK_K) < K)[None, :]
        value = tl.load(at + k, mask=live, other=0.0).to(tl.float32)
        value = tl.where(live, value - mean[:, None], 0.0)
        squares += tl.sum(value * value, 1)
    return mean, tl.rsqrt(squares / K + eps)


@triton.jit
def _fetch(start, first, K: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Ask for [ROWS, COLS] of a weight to come to the L2 cache; a line is 64 elements of 2 bytes."""
    line = first + tl.arange(0, COLS // 64) * 64
    at = start + tl.arange(0, ROWS)[:, None] * K + tl.minimum(line, K - 1)[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [at], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def dot(
    y,
    x,
    weight,
    bias,
    residual,
    gain,
    shift,
    partial,
    counter,
    eps,
    rows,
    N: tl.constexpr,
    K: tl.constexpr,
    NORM: tl.constexpr,
    ONE_PLUS: tl.constexpr,
    ACT: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
    DEPTH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Up to BLOCK_M rows: y [rows, N] = epilogue(norm(x) · weightᵀ), computed as weight · norm(x)ᵀ.

    The weights are the tall operand, so that few rows of x waste little of the matrix units.
    """
    release_next(OVERLAP)
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    PART: tl.constexpr = (STEPS + SPLIT - 1) // SPLIT
    FULL: tl.constexpr = (N % BLOCK_N == 0) and (BLOCK_K * PART * SPLIT == K)
    # Only float16 could overflow before the scale is in.
    LATE: tl.constexpr = NORM == "rms" and SPLIT == 1 and x.dtype.element_ty != tl.float16
    pid = tl.program_id(0)
    split = tl.program_id(1)
    col = pid * BLOCK_N + tl.arange(0, BLOCK_N)
    live = col < N
    row = tl.arange(0, BLOCK_M)
    start = weight + pid.to(tl.int64) * BLOCK_N * K
    if OVERLAP and FULL and BLOCK_K % 64 == 0:
        _fetch(start, split * PART * BLOCK_K, K, BLOCK_N, BLOCK_K * 4)
        if GATED:
            _fetch(start + N * K, split * PART * BLOCK_K, K, BLOCK_N, BLOCK_K * 4)
    await_previous(OVERLAP)
    mean = tl.zeros([BLOCK_M], tl.float32)
    scale = tl.full([BLOCK_M], 1.0, tl.float32)
    if NORM != "none" and not LATE:
        mean, scale = _row_statistics(x, rows, K, eps, NORM == "layer", BLOCK_M, BLOCK_K)
    squares = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    up_sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32) if GATED else 0.0
    for step in tl.range(split * PART, split * PART + PART, num_stages=DEPTH):
        at = step * BLOCK_K + tl.arange(0, BLOCK_K)
        value = tl.load(
            x + row[:, None] * K + at[None, :], mask=(row < rows)[:, None] & (at < K)[None, :], other=0.0
        )
        gates = weight_tile(start, step, live, K, BLOCK_N, BLOCK_K, FULL, True)
        if NORM != "none":
            wide = value.to(tl.float32)
            if LATE:
                squares += tl.sum(wide * wide, 1)
            wide = normed(
                wide,
                mean[:, None],
                scale[:, None],
                gain,
                shift,
                at[None, :],
                K,
                BLOCK_K * PART * SPLIT,
                ONE_PLUS,
            )
            value = wide.to(x.dtype.element_ty)
        sums = tl.dot(gates, tl.trans(value), sums, input_precision="ieee")
        if GATED:
            ups = weight_tile(start + N * K, step, live, K, BLOCK_N, BLOCK_K, FULL, True)
            up_sums = tl.dot(ups, tl.trans(value), up_sums, input_precision="ieee")
    if LATE:
        scale = tl.rsqrt(squares / K + eps)
        sums *= scale[None, :]
        if GATED:
            up_sums *= scale[None, :]
    kept = live[:, None] & (row < rows)[None, :]
    if SPLIT == 1:
        finished(sums, up_sums, row[None, :], col[:, None], y, bias, residual, kept, N, ACT, GATED)
    else:
        HALF: tl.constexpr = SPLIT * BLOCK_M * N
        at = row[None, :] * N + col[:, None]
        tl.store(partial + split * BLOCK_M * N + at, sums, mask=kept)
        if GATED:
            tl.store(partial + HALF + split * BLOCK_M * N + at, up_sums, mask=kept)
        if last_to_arrive(counter + pid, SPLIT):
            sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            for part in tl.static_range(SPLIT):
                every = partial + part * BLOCK_M * N + at
                sums += tl.load(every, mask=kept, other=0.0, cache_modifier=".cg")
                if GATED:
                    if part == 0:
                        up_sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
                    up_sums += tl.load(every + HALF, mask=kept, other=0.0, cache_modifier=".cg")
            finished(sums, up_sums, row[None, :], col[:, None], y, bias, residual, kept, N, ACT, GATED)
