# mypy: ignore-errors
"""Pieces that several kernels share."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def release_next(OVERLAP: tl.constexpr):
    """Let the next kernel start beside this one; it still waits before it reads what this one writes."""
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def await_previous(OVERLAP: tl.constexpr):
    """From here on, all that the kernels before have written can be read."""
    if OVERLAP:
        gdc_wait()


@triton.jit
def activated(x, ACT: tl.constexpr):
    """An activation of builders/ops.py, in float32."""
    if ACT == "silu":
        x = x * tl.sigmoid(x)
    elif ACT == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACT == "gelu_tanh":
        # 0.5 · (1 + tanh u) is the sigmoid of 2u
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACT == "relu":
        x = tl.maximum(x, 0.0)
    elif ACT == "relu2":
        x = tl.maximum(x, 0.0)
        x = x * x
    return x


@triton.jit
def last_to_arrive(counter, COUNT):
    """True in the one program of COUNT that comes last; it sees what the others stored before.

    The counter is zero again afterwards, for the next launch.
    """
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1, sem="acq_rel") == COUNT - 1
    if last:
        tl.store(counter, 0)
    return last


@triton.jit
def clipped(x, clip, CLIPPED: tl.constexpr):
    """x in float32 between -clip and clip."""
    x = x.to(tl.float32)
    if CLIPPED:
        x = tl.minimum(tl.maximum(x, -clip), clip)
    return x


@triton.jit
def turned(start, col, live, cos, sin, clip, HALF: tl.constexpr, CLIPPED: tl.constexpr):
    """Columns of heads in float32, clipped, the first 2 · HALF rotated; cos and sin are of their token."""
    value = clipped(tl.load(start + col, mask=live, other=0.0), clip, CLIPPED)
    if HALF > 0:
        both = col < 2 * HALF
        partner = tl.where(col < HALF, col + HALF, col - HALF)
        other = clipped(tl.load(start + partner, mask=live & both, other=0.0), clip, CLIPPED)
        c = tl.load(cos + col % HALF, mask=both, other=1.0)
        s = tl.load(sin + col % HALF, mask=both, other=0.0)
        value = value * c + other * tl.where(col < HALF, -s, s)
    return value
