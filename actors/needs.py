"""What choosing tokens takes, for a request and for several at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass

from actors.sampling_params import SamplingParams


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What some rows need to be done. More than they need changes nothing but the time that it takes."""

    draw: bool = False
    """Some rows are not greedy."""
    top_k: int = 0
    """The largest k, up to a power of two."""
    top_p: bool = False
    both: bool = False
    """Some rows have a k and a p, which counts among what the k keeps."""
    min_p: bool = False
    penalties: bool = False
    bias: bool = False
    bars: bool = False
    """Some rows may not end before they have so many tokens."""
    logprobs: int = -1
    """How many of the likeliest are told with their log-probabilities; -1 not even the chosen one's."""

    @classmethod
    def of(cls, params: SamplingParams) -> Needs:
        draw = not params.is_greedy
        return cls(
            draw=draw,
            top_k=1 << (params.top_k - 1).bit_length() if draw and params.top_k else 0,
            top_p=draw and params.top_p < 1,
            both=draw and params.top_k > 0 and params.top_p < 1,
            min_p=draw and params.min_p > 0,
            penalties=(params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
            != (1, 0, 0),
            bias=bool(params.logit_bias),
            bars=params.min_tokens > 0,
            logprobs=-1 if params.logprobs is None else params.logprobs,
        )

    @classmethod
    def union(cls, several: Iterable[Needs]) -> Needs:
        distinct = [astuple(needs) for needs in {cls(), *several}]
        names = cls.__dataclass_fields__
        return cls(
            **{name: max(values) for name, values in zip(names, zip(*distinct, strict=True), strict=True)}
        )
