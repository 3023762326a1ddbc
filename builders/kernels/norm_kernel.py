# mypy: ignore-errors
"""Normalization of rows, after an addition or not, and activations."""

import triton
import triton.language as tl

from builders.kernels.parts_kernel import activated, await_previous, release_next


@triton.jit
def norm(
    y,
    x,
    residual,
    total,
    weight,
    bias,
    eps,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    STRIDE: tl.constexpr,
    HEAD_STRIDE: tl.constexpr,
    CENTERED: tl.constexpr,
    ONE_PLUS: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """y = norm(x + residual), and total = x + residual; a program a row, or a head of a row."""
    release_next(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)
    live = col < WIDTH
    gain = tl.load(weight + col, mask=live, other=0.0).to(tl.float32)
    await_previous(OVERLAP)
    at = x + row // HEADS * STRIDE + row % HEADS * HEAD_STRIDE
    value = tl.load(at + col, mask=live, other=0.0)
    if residual is not None:
        added = value.to(tl.float32) + tl.load(residual + row * WIDTH + col, mask=live, other=0.0).to(
            tl.float32
        )
        value = added.to(x.dtype.element_ty)
        tl.store(total + row * WIDTH + col, value, mask=live)
    value = value.to(tl.float32)
    if CENTERED:
        mean = tl.sum(value, 0) / WIDTH
        value = tl.where(live, value - mean, 0.0)
    scale = tl.rsqrt(tl.sum(value * value, 0) / WIDTH + eps)
    if ONE_PLUS:
        gain += 1.0
    out = value * scale * gain
    if bias is not None:
        out += tl.load(bias + col, mask=live, other=0.0).to(tl.float32)
    tl.store(y + row * WIDTH + col, out.to(y.dtype.element_ty), mask=live)


@triton.jit
def activation(
    y,
    x,
    WIDTH: tl.constexpr,
    ACT: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """y [T, WIDTH] = act(x), or where gated act(first half of x's row) · second half."""
    release_next(OVERLAP)
    await_previous(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = col < WIDTH
    start = x + row * WIDTH * (2 if GATED else 1)
    out = activated(tl.load(start + col, mask=live, other=0.0).to(tl.float32), ACT)
    if GATED:
        out *= tl.load(start + WIDTH + col, mask=live, other=0.0).to(tl.float32)
    tl.store(y + row * WIDTH + col, out.to(y.dtype.element_ty), mask=live)
