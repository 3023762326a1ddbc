# mypy: ignore-errors
"""Linear layers for two to eight rows: weights go from memory straight to matrix units, by no other way.

Written in Gluon, which says how registers hold a tile: a thread reads 16 bytes of a row, and these are its
operands of four multiplications. Triton's interpreter knows no Gluon.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@gluon.jit
def _weights(start, step, K: gl.constexpr, SHAPE: gl.constexpr, LAYOUT: gl.constexpr):
    """[PARTS, BLOCK_N, BLOCK_K] of a weight: every warp goes through a part of its own of each row."""
    part = gl.arange(0, SHAPE[0], gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT)))
    row = gl.arange(0, SHAPE[1], gl.SliceLayout(0, gl.SliceLayout(2, LAYOUT)))
    col = gl.arange(0, SHAPE[2], gl.SliceLayout(0, gl.SliceLayout(1, LAYOUT))) + step * SHAPE[2]
    at = part[:, None, None] * (K // SHAPE[0]) + row[None, :, None] * K + col[None, None, :]
    return gl.load(start + at, eviction_policy="evict_first")


@gluon.jit
def _values(x, step, rows, K: gl.constexpr, SHAPE: gl.constexpr, LAYOUT: gl.constexpr):
    """[PARTS, BLOCK_K, BLOCK_M] of x, transposed."""
    part = gl.arange(0, SHAPE[0], gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT)))
    col = gl.arange(0, SHAPE[1], gl.SliceLayout(0, gl.SliceLayout(2, LAYOUT))) + step * SHAPE[1]
    row = gl.arange(0, SHAPE[2], gl.SliceLayout(0, gl.SliceLayout(1, LAYOUT)))[None, None, :]
    at = part[:, None, None] * (K // SHAPE[0]) + col[None, :, None] + row * K
    return gl.load(x + at, mask=row < rows, other=0.0)


@gluon.jit
def direct(
    y,
    x,
    weight,
    bias,
    residual,
    rows,
    N: gl.constexpr,
    K: gl.constexpr,
    DIRECT: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    PARTS: gl.constexpr,
    DEPTH: gl.constexpr,
    OVERLAP: gl.constexpr,
):
    """Up to DIRECT rows: y [rows, N] = weight · x + bias + residual.

    PARTS warps share BLOCK_N columns of y and add up what they found; DEPTH tiles of weights are always on
    their way to registers, the first before x is there.
    """
    if OVERLAP:
        gdc_launch_dependents()
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [PARTS, 1, 1], [1, 16, 8])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, SUMS, 8)
    RIGHT: gl.constexpr = gl.DotOperandLayout(1, SUMS, 8)
    TILE: gl.constexpr = [PARTS, BLOCK_N, BLOCK_K]
    VALUES: gl.constexpr = [PARTS, BLOCK_K, DIRECT]
    STEPS: gl.constexpr = K // PARTS // BLOCK_K
    start = weight + gl.program_id(0).to(gl.int64) * (BLOCK_N * K)
    weights = ()
    for i in gl.static_range(DEPTH):
        if i < STEPS:
            weights = weights + (_weights(start, i, K, TILE, LEFT),)
    if OVERLAP:
        gdc_wait()
    sums = gl.zeros([PARTS, BLOCK_N, DIRECT], gl.float32, layout=SUMS)
    values = (_values(x, 0, rows, K, VALUES, RIGHT),)
    for i in gl.static_range(STEPS):
        if i + DEPTH < STEPS:
            weights = weights + (_weights(start, i + DEPTH, K, TILE, LEFT),)
        if i + 1 < STEPS:
            values = values + (_values(x, i + 1, rows, K, VALUES, RIGHT),)
        sums = mma_v2(weights[i], values[i], sums)
    out = gl.sum(sums, 0)
    col = gl.program_id(0) * BLOCK_N + gl.arange(0, BLOCK_N, gl.SliceLayout(1, gl.SliceLayout(0, SUMS)))
    row = gl.arange(0, DIRECT, gl.SliceLayout(0, gl.SliceLayout(0, SUMS)))
    at = row[None, :] * N + col[:, None]
    live = (row < rows)[None, :]
    if bias is not None:
        out += gl.load(bias + col).to(gl.float32)[:, None]
    if residual is not None:
        out += gl.load(residual + at, mask=live, other=0.0).to(gl.float32)
    gl.store(y + at, out.to(y.dtype.element_ty), mask=live)
