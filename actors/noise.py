"""Random numbers by hashing (seed, position, token): the same for a request whatever else is in its batch.

There is no state to advance and nothing of the batch in it. Integer arithmetic wraps alike on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX64 = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_MIX32 = ((16, 0x21F0AAAD), (15, 0xD35A2D97))
_UNIT = 2.0**-31 * (1 - 2.0**-24)
"""Takes 31 bits to (0, 1): the largest float below one stays below one, and the least is 2**-32."""


def gumbel(seeds: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """Independent standard Gumbel variables [R, V] in float32: the argmax of scores + these is a draw.

    seeds and positions [R]; tokens [V] int32. What a token gets does not depend on the other tokens, so
    parts of a vocabulary may draw apart.
    """
    uniform = _bits(seeds, positions, tokens).float().add_(0.5).mul_(_UNIT)
    # -log1p(-u) is fine where u is small, which is where the unlikely tokens win.
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _bits(seeds: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """31 random bits for every row and token, [R, V] int32."""
    keys = _mixed(_mixed(seeds.long()) + positions.long())[:, None]
    bits = tokens ^ keys.int()
    for after, (shift, factor) in zip((keys >> 32, None), _MIX32, strict=True):
        bits ^= _shifted(bits, shift, 32)
        bits *= _signed(factor, 32)
        if after is not None:
            bits ^= after.int()
    bits ^= _shifted(bits, 15, 32)
    return bits.bitwise_and_(0x7FFFFFFF)


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's step: every bit of x [R] int64 decides every bit of the result."""
    x = x + _signed(_GOLDEN, 64)
    for shift, factor in _MIX64:
        x = (x ^ _shifted(x, shift, 64)) * _signed(factor, 64)
    return x ^ _shifted(x, 31, 64)


def _shifted(x: Tensor, shift: int, width: int) -> Tensor:
    """To the right, zeros from the left: PyTorch's own shift repeats the sign."""
    return (x >> shift).bitwise_and_((1 << (width - shift)) - 1)


def _signed(word: int, width: int) -> int:
    """The same bits as a number of a signed type."""
    return word - (1 << width) if word >> (width - 1) else word


def places(vocab_size: int, device: torch.device | str) -> Tensor:
    """The tokens of a whole vocabulary."""
    return torch.arange(vocab_size, dtype=torch.int32, device=device)
