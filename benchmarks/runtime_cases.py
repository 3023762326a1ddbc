"""What `benchmarks/runtime.py` runs: models by their shape, and cases of so many requests at once."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, kw_only=True, order=True)
class Case:
    """So many requests that arrive together, each with so many tokens in and out."""

    batch: int
    tokens_in: int
    tokens_out: int

    def __str__(self) -> str:
        return f"{self.batch}, {self.tokens_in}, {self.tokens_out}"

    @property
    def context(self) -> float:
        """Tokens of each sequence in the cache, on average over the decoding steps."""
        return self.tokens_in + self.tokens_out / 2

    def prompts(self, vocabulary: int, turn: int) -> list[tuple[int, ...]]:
        """Random: no two begin alike, not those of another turn either, so that nothing is in the cache."""
        chance = random.Random(f"{self} {turn}")
        return [tuple(chance.choices(range(vocabulary), k=self.tokens_in)) for _ in range(self.batch)]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model without its weights, and what is asked of it."""

    config: Mapping[str, Any]
    """As Hugging Face writes it; weights are random."""
    cases: tuple[Case, ...]
    dtype: str = "bfloat16"


def batches(tokens_in: int, tokens_out: int, *sizes: int) -> tuple[Case, ...]:
    """A case for every size of a batch."""
    return tuple(Case(batch=size, tokens_in=tokens_in, tokens_out=tokens_out) for size in sizes)


_LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
}
_LLAMA_70B = {
    **_LLAMA_8B,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
_MIXTRAL_8X7B = {
    **_LLAMA_8B,
    "model_type": "mixtral",
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
}
_TINY = {
    **_LLAMA_8B,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 256,
}

SHAPES: Mapping[str, Shape] = {
    "llama-8b": Shape(
        config=_LLAMA_8B,
        cases=(
            Case(batch=1, tokens_in=128, tokens_out=256),
            Case(batch=8, tokens_in=32, tokens_out=128),
            Case(batch=16, tokens_in=128, tokens_out=256),
            Case(batch=64, tokens_in=512, tokens_out=256),
            Case(batch=256, tokens_in=512, tokens_out=256),
        ),
    ),
    "llama-70b": Shape(config=_LLAMA_70B, cases=batches(128, 128, 1, 8, 64)),
    "mixtral-8x7b": Shape(config=_MIXTRAL_8X7B, cases=batches(128, 128, 1, 8, 64)),
    "tiny": Shape(config=_TINY, cases=batches(8, 8, 1, 8), dtype="float32"),
}


FLOOR_BATCHES = (1, 8, 64)


def floor_cases(cases: Sequence[Case], tokens_out: int) -> tuple[Case, ...]:
    """What Transformers' `generate` is asked: some of the batches, few tokens, as it is slow."""
    return tuple(
        replace(case, tokens_out=min(tokens_out, case.tokens_out))
        for case in cases
        if case.batch in FLOOR_BATCHES
    )


def long_cases(context: int, tokens_out: int) -> tuple[Case, ...]:
    """Decoding with so many tokens in the cache."""
    return batches(context, tokens_out, 1, 8)
