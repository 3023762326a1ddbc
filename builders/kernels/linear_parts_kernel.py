# mypy: ignore-errors
"""Pieces of linear layers: reading weights, norms on the way in, neighbours on the way out."""

import triton
import triton.language as tl

from builders.kernels.parts_kernel import activated


@triton.jit
def weight_tile(
    start,
    step,
    live,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FULL: tl.constexpr,
    ONCE: tl.constexpr,
):
    """[ROWS, BLOCK_K] of a weight; ONCE: nobody else will read it."""
    POLICY: tl.constexpr = "evict_first" if ONCE else ""
    col = step * BLOCK_K + tl.arange(0, BLOCK_K)
    at = start + tl.arange(0, ROWS)[:, None] * K + col[None, :]
    if FULL:
        return tl.load(at, eviction_policy=POLICY)
    else:
        inside = live[:, None] & (col < K)[None, :]
        return tl.load(at, mask=inside, other=0.0, eviction_policy=POLICY)


@triton.jit
def finished(
    value, up, row, col, y, bias, residual, live, N: tl.constexpr, ACT: tl.constexpr, GATED: tl.constexpr
):
    """Bias, activation and residual on sums in float32, then the store; row and col are of y."""
    if bias is not None:
        value += tl.load(bias + col, mask=col < N, other=0.0).to(tl.float32)
    value = activated(value, ACT)
    if GATED:
        if bias is not None:
            up += tl.load(bias + N + col, mask=col < N, other=0.0).to(tl.float32)
        value *= up
    at = row * N + col
    if residual is not None:
        value += tl.load(residual + at, mask=live, other=0.0).to(tl.float32)
    tl.store(y + at, value.to(y.dtype.element_ty), mask=live)


@triton.jit
def columns(start, col, K: tl.constexpr, COVERED: tl.constexpr):
    """Columns of a row of K in float32, zero beyond it; COVERED is how many the programs go over."""
    if COVERED == K:
        return tl.load(start + col).to(tl.float32)
    else:
        return tl.load(start + col, mask=col < K, other=0.0).to(tl.float32)


@triton.jit
def normed(
    value, mean, scale, gain, shift, col, K: tl.constexpr, COVERED: tl.constexpr, ONE_PLUS: tl.constexpr
):
    """Columns of x (rows before them or not), normalized; `scale` is 1 where it is multiplied in later."""
    gains = columns(gain, col, K, COVERED)
    if ONE_PLUS:
        gains += 1.0
    value = (value - mean) * scale * gains
    if shift is not None:
        value += columns(shift, col, K, COVERED)
    return value
