# mypy: ignore-errors
"""A sum over the ranks of a node: every rank writes to every other's memory, and waits in its own."""

import triton
import triton.language as tl

from builders.kernels.parts_kernel import await_previous, release_next

# Data travel in packets of 8 bytes: 4 of data, and 4 that say of which call they are. Nothing else is waited
# for: no barrier, no answer. Why no rank ever takes a packet of another call:
#
# - A packet is one aligned store of 8 bytes and one load of 8: data and epoch arrive together or not at all,
#   in whatever order packets do. Stores go through to memory (.wt), loads look there (volatile): for the
#   device, both are strong accesses of the whole system.
# - Block b of every launch, large or small, writes and reads the same region, counts its own calls, and
#   always writes all of the region. Ranks launch the same sizes in the same order, so a block's count is the
#   same on all of them in the same call.
# - There are two of each region, for even and odd epochs. What is in one before epoch e is all of epoch
#   e - 2, or zeros before a block's first two calls: never taken for e, nor when the 32 bits begin anew.
# - What is not read yet is not overwritten: a rank that writes epoch e + 1 has taken the peer's packets of e,
#   which the peer wrote when its call e - 1, in the same half of memory, had ended.
#
# Waiting blocks are all on the device: a launch has at most `MOST_BLOCKS`, of one warp each. The next kernel
# may start beside them, but no call's work begins before the call before it has ended: `await_previous`.


@triton.jit
def all_reduce(
    y,
    x,
    residual,
    inbox,
    epochs,
    other0,
    other1,
    other2,
    other3,
    other4,
    other5,
    other6,
    rank,
    words,
    KIND: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCKS: tl.constexpr,
    PACKETS: tl.constexpr,
    PUSH: tl.constexpr,
    TAKE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """y = the sum of all ranks' x + residual, each as words of 4 bytes; the same bits on every rank.

    `inbox` [2, RANKS, BLOCKS, PACKETS] is this rank's; the others' are in the order of ranks. PUSH and TAKE
    are the two halves of a call, which tests do one after another.
    """
    release_next(OVERLAP)
    block = tl.program_id(0)
    packet = tl.arange(0, PACKETS)
    word = block * PACKETS + packet
    live = word < words
    await_previous(OVERLAP)
    epoch = tl.load(epochs + block) + 1
    mine = tl.load(x + word, mask=live, other=0)
    half = (epoch & 1) * RANKS
    if PUSH:
        sent = (epoch.to(tl.int64) << 32) | (mine.to(tl.int64) & 0xFFFFFFFF)
        at = ((half + rank) * BLOCKS + block) * PACKETS + packet
        _push(other0, at, sent)
        _push(other1, at, sent)
        _push(other2, at, sent)
        _push(other3, at, sent)
        _push(other4, at, sent)
        _push(other5, at, sent)
        _push(other6, at, sent)
    if TAKE:
        added = tl.zeros([PACKETS], tl.int32)
        if residual is not None:
            added = tl.load(residual + word, mask=live, other=0)
        source = tl.arange(0, triton.next_power_of_2(RANKS))[:, None]
        awaited = (source != rank) & (source < RANKS)
        at = inbox + ((half + source) * BLOCKS + block) * PACKETS + packet[None, :]
        got = tl.load(at, mask=awaited, other=0, volatile=True)
        while _is_missing(got, epoch, awaited):
            got = tl.load(at, mask=awaited, other=0, volatile=True)
        parts = tl.where(source == rank, mine[None, :], got.to(tl.int32))
        tl.store(y + word, _sum(parts, added, KIND), mask=live)
        tl.store(epochs + block, epoch)


@triton.jit
def _push(other, at, sent):
    if other is not None:
        tl.store(other + at, sent, cache_modifier=".wt")


@triton.jit
def _is_missing(got, epoch, awaited):
    """Whether any packet is not of this call."""
    missing = awaited & ((got >> 32).to(tl.int32) != epoch)
    return tl.max(tl.max(missing.to(tl.int32), 0), 0) != 0


@triton.jit
def _sum(parts, added, KIND: tl.constexpr):
    """Words [PACKETS] from the ranks' [ROWS, PACKETS] and one more, added up in float32 in this order."""
    if KIND == "fp32":
        total = tl.sum(parts.to(tl.float32, bitcast=True), 0) + added.to(tl.float32, bitcast=True)
        return total.to(tl.int32, bitcast=True)
    else:
        low = tl.sum(_half(parts, KIND), 0) + _half(added, KIND)
        high = tl.sum(_half(parts >> 16, KIND), 0) + _half(added >> 16, KIND)
        return (_bits(high, KIND) << 16) | (_bits(low, KIND) & 0xFFFF)


@triton.jit
def _half(words, KIND: tl.constexpr):
    """The lower 2 bytes of words, as the numbers they are."""
    if KIND == "bf16":
        return words.to(tl.int16).to(tl.bfloat16, bitcast=True).to(tl.float32)
    else:
        return words.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _bits(values, KIND: tl.constexpr):
    if KIND == "bf16":
        return values.to(tl.bfloat16).to(tl.int16, bitcast=True).to(tl.int32)
    else:
        return values.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32)
