"""How a request wants its tokens chosen: plain data that travels with it."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from actors.grammar import Grammar
from builders.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Checked when it is made: a mistake is refused before work is done."""

    max_tokens: int = 16
    """Tokens to generate at most."""
    min_tokens: int = 0
    """Tokens to generate before any end is allowed."""
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_k: int = 0
    """Choose among so many of the likeliest; 0 is all."""
    top_p: float = 1.0
    """Choose among the likeliest whose probabilities add up to this."""
    min_p: float = 0.0
    """Choose among tokens at least this likely, as a part of the likeliest."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative scores of tokens of the prompt and the text."""
    presence_penalty: float = 0.0
    """Taken from the score of tokens that the text has."""
    frequency_penalty: float = 0.0
    """Taken from the score of a token for every time that the text has it."""
    seed: int | None = None
    """The same seed gives the same text; None draws one."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the scores of tokens."""
    stop: tuple[str, ...] = ()
    """Texts that end it, and are not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end it."""
    ignore_eos: bool = False
    """Go on after the model's own end."""
    logprobs: int | None = None
    """Give the log-probability of every token, and of so many of the likeliest."""
    prompt_logprobs: int | None = None
    """Give the log-probability of every token of the prompt but the first, and of so many likeliest."""
    logits: bool = False
    """Give every generated token's whole row of logits."""
    n: int = 1
    """Texts to generate."""
    num_beams: int = 1
    """Beam search instead of sampling, with so many beams."""
    length_penalty: float = 1.0
    """Beams are ranked by their score over their length to this power."""
    early_stopping: bool = False
    """End beam search with the first `num_beams` finished texts."""
    grammar: Grammar | None = None
    """What texts must be, up to where they are cut off."""

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not (least <= value <= most):
                raise UserError(f"{name}={value}: must be {_words(least, most)}")
        if self.min_tokens > self.max_tokens:
            raise UserError(f"min_tokens={self.min_tokens}: more than max_tokens={self.max_tokens}")
        if self.num_beams > 1 and self.n > self.num_beams:
            raise UserError(f"n={self.n}: more than num_beams={self.num_beams}")
        for name in ("logits", "logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if self.num_beams > 1 and value is not None and value is not False:
                raise UserError(f"{name}={value}: not with num_beams={self.num_beams}; use num_beams=1")
        if self.num_beams > 1 and self.grammar:
            raise UserError(f"grammar: not with num_beams={self.num_beams}; use num_beams=1")

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0 or self.top_k == 1


def with_seed(params: SamplingParams) -> SamplingParams:
    """The same, with a seed: drawn where there was none."""
    return params if params.seed is not None else replace(params, seed=secrets.randbits(63))


_RANGES: Mapping[str, tuple[float, float]] = {
    "max_tokens": (1, math.inf),
    "min_tokens": (0, math.inf),
    "temperature": (0, 100),
    "top_k": (0, math.inf),
    "top_p": (1e-9, 1),
    "min_p": (0, 1),
    "repetition_penalty": (1e-3, 100),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "seed": (-(2**63), 2**63 - 1),
    "logprobs": (0, 1000),
    "prompt_logprobs": (0, 1000),
    "n": (1, 1024),
    "num_beams": (1, 1024),
    "length_penalty": (-100, 100),
}


def _words(least: float, most: float) -> str:
    return f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
