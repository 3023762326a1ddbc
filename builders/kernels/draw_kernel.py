# mypy: ignore-errors
"""Draws a token for every row of scores among those that top-k, top-p and min-p keep, and sorts none."""

import triton
import triton.language as tl

# A draw is the largest of score + noise, and noise does not depend on what is kept. So the largest of all is
# the draw if it is kept itself; if not, whatever is less likely than it is not kept either, and the largest
# of the rest is looked for. Whether a token is kept takes one pass over the row: how many are likelier
# (top-k), and what those weigh that are less likely (top-p). A turn leaves about half of the weight that
# could be drawn.

_ROOT_HALF = tl.constexpr(0x3F3504F3)
"""The bits of the square root of a half."""
_ONE = tl.constexpr(0x3F800000)
_UNIT = tl.constexpr(2.0**-31 * (1 - 2.0**-24))
_WEIGHT = tl.constexpr(2.0**36)
_MOST_NOISE = tl.constexpr(23.0)
"""No token gets more: -log(2**-33)."""


@triton.jit
def draw(
    tokens,
    scores,
    slots,
    positions,
    reals,
    integers,
    VOCABULARY: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """tokens [R] from scores [R, VOCABULARY]; a program a row, whose slot says how it wants to draw.

    reals [slots, 7] and integers [slots, 3] are those of `actors.sampler`. SCALED: scores are divided by the
    temperature already.
    """
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    at = scores + row * VOCABULARY
    temperature = tl.load(reals + slot * 7).to(tl.float32)
    if SCALED:
        temperature = 1.0
    min_p = tl.load(reals + slot * 7 + 2).to(tl.float32)
    noisy = tl.load(reals + slot * 7 + 6) > 0
    top_k = tl.load(integers + slot * 3)
    key = _key(tl.load(integers + slot * 3 + 1), tl.load(positions + row))

    best = _largest(at, temperature, VOCABULARY, BLOCK)
    limit = _limit(at, temperature, best, tl.load(reals + slot * 7 + 1), VOCABULARY, BLOCK)
    low, low_place = float("-inf"), VOCABULARY  # nothing up to here is kept
    token, score = _noisiest(at, temperature, best, min_p, key, noisy, low, low_place, VOCABULARY, BLOCK)
    while _is_dropped(at, temperature, best, score, token, top_k, limit, VOCABULARY, BLOCK):
        low, low_place = score, token
        token, score = _noisiest(at, temperature, best, min_p, key, noisy, low, low_place, VOCABULARY, BLOCK)
    tl.store(tokens + row, token.to(tl.int64))


@triton.jit
def _scores(at, place, temperature, VOCABULARY: tl.constexpr):
    """A zero is a zero whatever its sign."""
    score = tl.load(at + place, mask=place < VOCABULARY, other=float("-inf"))
    return tl.div_rn(score, temperature) + 0.0


@triton.jit
def _largest(at, temperature, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, VOCABULARY, BLOCK):
        best = tl.maximum(best, _scores(at, start + tl.arange(0, BLOCK), temperature, VOCABULARY))
    return tl.max(best, 0)


@triton.jit
def _weights(score, best):
    """Whole numbers, so that no order of adding them up matters."""
    return (tl.exp(score - best) * _WEIGHT + 0.5).to(tl.int64)


@triton.jit
def _limit(at, temperature, best, top_p, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    """What those may weigh together that top-p drops; -1 where it drops none."""
    limit = tl.full((), -1, tl.int64)
    if top_p < 1:
        total = tl.zeros([BLOCK], tl.int64)
        for start in range(0, VOCABULARY, BLOCK):
            total += _weights(_scores(at, start + tl.arange(0, BLOCK), temperature, VOCABULARY), best)
        limit = tl.floor((1 - top_p) * tl.sum(total, 0).to(tl.float64)).to(tl.int64)
    return limit


@triton.jit
def _noisiest(
    at, temperature, best, min_p, key, noisy, low, low_place, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr
):
    """The token with the largest sum of score and noise, of those above the lowest; its score."""
    found, found_score = tl.full((), 0, tl.int32), tl.full((), float("-inf"), tl.float32)
    largest = tl.full((), float("-inf"), tl.float32)
    for start in range(0, VOCABULARY, BLOCK):
        place = start + tl.arange(0, BLOCK)
        score = _scores(at, place, temperature, VOCABULARY)
        above = (score > low) | ((score == low) & (place > low_place))
        score = tl.where(above & (tl.exp(score - best) >= min_p), score, float("-inf"))
        if tl.max(score, 0) + _MOST_NOISE > largest:
            total = score
            if noisy:
                total = score + _noise(key, place)
            value, local = tl.max(total, 0, return_indices=True, return_indices_tie_break_left=True)
            if value > largest:
                largest = value
                found = start + local
                found_score = tl.max(tl.where(place == found, score, float("-inf")), 0)
    return found, found_score


@triton.jit
def _is_dropped(
    at, temperature, best, score, token, top_k, limit, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr
):
    """By top-k, or by top-p; among equals the earlier ones are dropped first. What is impossible is not."""
    dropped = tl.full((), 0, tl.int32)
    if ((top_k > 0) | (limit >= 0)) & (score > float("-inf")):
        likelier = tl.zeros([BLOCK], tl.int32)
        below = tl.zeros([BLOCK], tl.int64)
        for start in range(0, VOCABULARY, BLOCK):
            place = start + tl.arange(0, BLOCK)
            other = _scores(at, place, temperature, VOCABULARY)
            likelier += (other > score).to(tl.int32)
            up_to = (other < score) | ((other == score) & (place <= token))
            below += tl.where(up_to, _weights(other, best), 0)
        by_top_k = (top_k > 0) & (tl.sum(likelier, 0) >= top_k)
        by_top_p = tl.sum(below, 0) <= limit
        dropped = (by_top_k | by_top_p).to(tl.int32)
    return dropped != 0


@triton.jit
def _key(seed, position):
    """What a row's noise depends on beside the token, as `actors.noise` has it."""
    return _mixed(_mixed(seed.to(tl.uint64)) + position.to(tl.uint64))


@triton.jit
def _mixed(x):
    x += 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _noise(key, place):
    """A standard Gumbel variable for every token."""
    bits = place.to(tl.uint32) ^ key.to(tl.uint32)
    bits = (bits ^ (bits >> 16)) * 0x21F0AAAD
    bits = bits ^ (key >> 32).to(tl.uint32)
    bits = (bits ^ (bits >> 15)) * 0xD35A2D97
    bits = (bits ^ (bits >> 15)) & 0x7FFFFFFF
    uniform = (bits.to(tl.int32).to(tl.float32) + 0.5) * _UNIT
    return -_log(_exponential(uniform))


@triton.jit
def _exponential(uniform):
    """-log(1 - uniform), exact where that is small: the unlikely tokens win there."""
    exponent, part = _split(1.0 - uniform)
    small = uniform < 0.25
    return -_log_of(tl.where(small, 0, exponent), tl.where(small, -uniform, part))


@triton.jit
def _log(x):
    exponent, part = _split(x)
    return _log_of(exponent, part)


@triton.jit
def _split(x):
    """x = 2**exponent (1 + part), with 1 + part between the square roots of a half and of two."""
    bits = x.to(tl.int32, bitcast=True) + (_ONE - _ROOT_HALF)
    exponent = (bits >> 23) - 127
    return exponent, ((bits & 0x007FFFFF) + _ROOT_HALF).to(tl.float32, bitcast=True) - 1.0


@triton.jit
def _log_of(exponent, part):
    """The logarithm, to the last digit or two."""
    series = 7.0376836292e-2 * part - 1.1514610310e-1
    series = series * part + 1.1676998740e-1
    series = series * part - 1.2420140846e-1
    series = series * part + 1.4249322787e-1
    series = series * part - 1.6668057665e-1
    series = series * part + 2.0000714765e-1
    series = series * part - 2.4999993993e-1
    series = series * part + 3.3333331174e-1
    square = part * part
    number = exponent.to(tl.float32)
    rest = series * part * square - 2.12194440e-4 * number - 0.5 * square
    return part + rest + 0.693359375 * number
