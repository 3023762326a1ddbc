"""What an engine is built for: the largest batch, prompt and sequence, and the size of a cache block."""

from __future__ import annotations

from dataclasses import dataclass, replace

from builders.errors import LayoutError
from builders.spec import ModelSpec

SCORED_TOKENS = 256
"""Tokens of prompts that a step scores at most: each has a row of logits, as long as the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Fixed at build time; a request beyond them is refused before work is done."""

    max_batch_size: int = 64
    """Sequences in one step."""
    max_input_len: int = 1024
    """Tokens of a prompt."""
    max_seq_len: int = 2048
    """Tokens of a prompt and what follows it."""
    max_num_tokens: int = 8192
    """Tokens of one step, over all sequences."""
    max_beam_width: int = 1
    tokens_per_block: int = 32
    """Tokens in one block of the paged cache."""
    max_attention_window_size: int | None = None
    """Tokens that attention sees, itself included; None is as many as the model's own window."""

    @property
    def max_sequences(self) -> int:
        """Rows of the largest decoding step: every beam is one."""
        return self.max_batch_size * self.max_beam_width

    @property
    def max_logits(self) -> int:
        """Rows of logits to have memory for: every sequence's, and those that score prompts."""
        return min(self.max_sequences + SCORED_TOKENS, self.max_num_tokens)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise LayoutError(f"--{name}={value}: must be at least 1")
        if self.max_input_len > self.max_seq_len:
            raise LayoutError(
                f"--max_input_len={self.max_input_len}: longer than --max_seq_len={self.max_seq_len}"
            )
        if self.max_sequences > self.max_num_tokens:
            beams = f" times --max_beam_width={self.max_beam_width}" if self.max_beam_width > 1 else ""
            raise LayoutError(
                f"--max_num_tokens={self.max_num_tokens}: less than --max_batch_size={self.max_batch_size}"
                f"{beams}; every sequence of a batch takes a token"
            )


def within_window(spec: ModelSpec, limits: Limits) -> ModelSpec:
    """The model as an engine computes it: the smaller window counts; one that nothing exceeds is none."""
    window = limits.max_attention_window_size
    if window is None or window >= min(limits.max_seq_len, spec.sliding_window or limits.max_seq_len):
        return spec
    return replace(spec, sliding_window=window)


def check_limits(limits: Limits, spec: ModelSpec) -> None:
    """Refuse what the model itself cannot do: only a table of positions ends."""
    if spec.position == "learned" and limits.max_seq_len > spec.max_positions:
        raise LayoutError(
            f"--max_seq_len={limits.max_seq_len}: the model has {spec.max_positions} learned positions; "
            f"use --max_seq_len {spec.max_positions} or less"
        )
