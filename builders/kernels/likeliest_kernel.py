# mypy: ignore-errors
"""The place of the largest of every row: parts of rows side by side, then the parts of each row."""

import triton
import triton.language as tl

from builders.kernels.parts_kernel import await_previous, release_next

# A value and its place are one whole number, so that a row's answer is the largest of those: above, the value
# as a number of the same order; below, how far its place is from the last there can be. So the first of
# equals is the largest. What is no number is above all that are, as PyTorch has it.

_LAST = tl.constexpr(0x7FFFFFFF)
_LOW = tl.constexpr(0xFFFFFFFF)
_LEAST = tl.constexpr(-(2**63))


@triton.jit
def parts(
    found,
    scores,
    VOCABULARY: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """found [R, parts] from scores [R, VOCABULARY], whose rows are STRIDE apart; a program a part."""
    release_next(OVERLAP)
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = part * (BLOCK * STEPS) + tl.arange(0, BLOCK)
    await_previous(OVERLAP)
    at = scores + row * STRIDE
    best, best_place = _scores(at, place, VOCABULARY), place
    for _ in tl.static_range(1, STEPS):
        place += BLOCK
        score = _scores(at, place, VOCABULARY)
        better = ~(score <= best) & (best == best)  # one that is no number is better, and stays so
        best, best_place = tl.where(better, score, best), tl.where(better, place, best_place)
    tl.store(found + row * tl.num_programs(1) + part, tl.max(_ordered(best, best_place), 0))


@triton.jit
def join(tokens, found, PARTS: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    """tokens [R] from found [R, PARTS]; a program a row."""
    release_next(OVERLAP)
    row, part = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    await_previous(OVERLAP)
    best = tl.max(tl.load(found + row * PARTS + part, mask=part < PARTS, other=_LEAST), 0)
    tl.store(tokens + row, (best & _LOW) ^ _LAST)


@triton.jit
def _scores(at, place, VOCABULARY: tl.constexpr):
    return tl.load(at + place, mask=place < VOCABULARY, other=float("-inf")).to(tl.float32)


@triton.jit
def _ordered(value, place):
    """A zero is a zero whatever its sign."""
    bits = tl.where(value == 0, 0.0, value).to(tl.int32, bitcast=True)
    order = tl.where(value == value, bits ^ ((bits >> 31) & _LAST), _LAST)
    return (order.to(tl.int64) << 32) | (place ^ _LAST).to(tl.int64)
