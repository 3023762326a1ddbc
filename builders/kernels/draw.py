"""The launcher of the kernel that draws tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from builders.kernels.call import Call, Config, Source, call

DRAW_CONFIG = Config(blocks={"BLOCK": 4096}, warps=16)


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """How every slot wants its tokens drawn: the tables of `actors.sampler`."""

    reals: Tensor
    """[slots, 7] float64: temperature, top_p, min_p; three of no use here; 1 to draw, 0 for the likeliest."""
    integers: Tensor
    """[slots, 3]: top_k, seed, one of no use here."""


def draw(
    scores: Tensor, slots: Tensor, positions: Tensor, wishes: Wishes, *, out: Tensor, scaled: bool
) -> list[Call]:
    """out [R] tokens from scores [R, V] in float32, of these slots and for these places of their texts.

    Scores that top-k has filtered already are `scaled`: divided by the temperature. Where a row has top-k and
    top-p, they have to be.
    """
    args = (out, scores, slots, positions, wishes.reals, wishes.integers)
    constants = {"VOCABULARY": scores.shape[1], "SCALED": scaled}
    return [call("draw.draw", args, constants, (scores.shape[0],), DRAW_CONFIG)]


def sources(scores: Tensor, slots: Tensor, wishes: Wishes) -> list[Source]:
    """All that may be launched; the tensors may be on the meta device."""
    return [
        one.source
        for scaled in (False, True)
        for one in draw(scores, slots, slots, wishes, out=slots, scaled=scaled)
    ]
