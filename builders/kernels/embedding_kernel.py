# mypy: ignore-errors
"""Looking tokens up."""

import triton
import triton.language as tl

from builders.kernels.parts_kernel import await_previous, release_next


@triton.jit
def embed(
    y,
    ids,
    weight,
    first,
    positions,
    position_weight,
    scale,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """y [T, WIDTH] = weight[id - first] · scale + position_weight[position]; zeros for rows not here."""
    release_next(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = col < WIDTH
    await_previous(OVERLAP)
    row = tl.load(ids + token).to(tl.int64)
    if first is not None:
        row -= tl.load(first).to(tl.int64)
    held = live & (row >= 0) & (row < ROWS)
    out = tl.load(weight + row * WIDTH + col, mask=held, other=0.0).to(tl.float32) * scale
    if positions is not None:
        position = tl.load(positions + token).to(tl.int64)
        learned = tl.load(position_weight + position * WIDTH + col, mask=live & (position >= 0), other=0.0)
        out += learned.to(tl.float32)
    tl.store(y + token * WIDTH + col, out.to(y.dtype.element_ty), mask=live)
