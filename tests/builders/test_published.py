"""Configurations as their makers published them are understood without a word of complaint."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from builders.families import from_transformers
from builders.params import params
from builders.spec import ModelSpec, RopeSpec

CONFIGS = Path(__file__).parents[1] / "configs"

BILLIONS = {
    "gpt2": 0.124,
    "gpt2-medium": 0.355,
    "gpt2-xl": 1.558,
    "distilgpt2": 0.0819,
    "santacoder": 1.12,
    "starcoder": 15.5,
    "granite-20b-code": 20.1,
    "granite-34b-code": 33.7,
    "starcoder2-3b": 3.03,
    "starcoder2-7b": 7.17,
    "starcoder2-15b": 15.96,
    "llama-7b": 6.74,
    "llama-2-70b": 68.98,
    "llama-3.1-8b": 8.03,
    "llama-3.2-1b": 1.24,
    "codellama-7b": 6.74,
    "codellama-34b": 33.74,
    "mistral-7b-v0.1": 7.24,
    "mistral-7b-v0.3": 7.25,
    "mpt-7b": 6.65,
    "mpt-7b-storywriter": 6.65,
    "mpt-30b": 29.96,
    "mixtral-8x7b": 46.7,
    "mixtral-8x22b": 140.6,
    "dbrx": 131.6,
}
"""How many parameters their makers say that they have."""

NUMBERS: dict[str, dict[str, Any]] = {
    "gpt2": {"num_kv_heads": 12, "activation": "gelu_tanh", "tied_embeddings": True, "position": "learned"},
    "gpt2-medium": {"num_kv_heads": 16, "num_layers": 24, "activation": "gelu_tanh"},
    "gpt2-xl": {"num_kv_heads": 25, "head_dim": 64, "num_layers": 48},
    "distilgpt2": {"num_layers": 6, "max_positions": 1024},
    "santacoder": {"num_kv_heads": 1, "activation": "gelu_tanh", "family": "gpt2"},
    "starcoder": {"num_kv_heads": 1, "activation": "gelu", "max_positions": 8192},
    "granite-20b-code": {"num_kv_heads": 1, "num_layers": 52, "activation": "gelu_tanh"},
    "starcoder2-3b": {"num_kv_heads": 2, "sliding_window": 4096, "tied_embeddings": True, "mlp_bias": True},
    "starcoder2-15b": {"num_kv_heads": 4, "tied_embeddings": False},
    "llama-7b": {"num_kv_heads": 32, "norm_eps": 1e-6, "gated": True, "qkv_bias": False},
    "llama-2-70b": {"num_kv_heads": 8, "intermediate_size": 28672},
    "llama-3.2-1b": {"head_dim": 64, "tied_embeddings": True},
    "codellama-7b": {"vocab_size": 32016},
    "mistral-7b-v0.1": {"sliding_window": 4096, "num_kv_heads": 8},
    "mistral-7b-v0.3": {"sliding_window": None, "vocab_size": 32768},
    "mpt-7b": {"position": "alibi", "norm_bias": False, "clip_qkv": None, "tied_embeddings": True},
    "mpt-7b-storywriter": {"alibi_bias_max": 16.0, "clip_qkv": 6.0, "max_positions": 65536},
    "mpt-30b": {"num_heads": 64, "head_dim": 112, "intermediate_size": 28672},
    "dbrx": {"num_kv_heads": 8, "clip_qkv": 8.0, "norm": "layernorm", "norm_bias": False},
}

ROPES = {
    "starcoder2-15b": RopeSpec(theta=1e5, rotary_dim=128),
    "llama-7b": RopeSpec(theta=1e4, rotary_dim=128),
    "llama-3.1-8b": RopeSpec(
        kind="llama3", theta=5e5, rotary_dim=128, factor=8.0, original_max_positions=8192
    ),
    "codellama-34b": RopeSpec(theta=1e6, rotary_dim=128),
    "mixtral-8x22b": RopeSpec(theta=1e6, rotary_dim=128),
    "dbrx": RopeSpec(theta=5e5, rotary_dim=128),
}

EXPERTS = {"mixtral-8x7b": (8, 2, True), "mixtral-8x22b": (8, 2, True), "dbrx": (16, 4, True)}


def published(name: str) -> ModelSpec:
    _family, spec = from_transformers(json.loads((CONFIGS / f"{name}.json").read_text()))
    return spec


def test_every_file_is_looked_at() -> None:
    assert {file.stem for file in CONFIGS.glob("*.json")} == BILLIONS.keys()


@pytest.mark.parametrize("name", BILLIONS)
def test_understood_with_the_published_number_of_parameters(name: str) -> None:
    spec = published(name)
    whole = [param for param in params(spec) if not (spec.tied_embeddings and param.name == "head.weight")]
    billions = sum(math.prod(param.shape) for param in whole) / 1e9
    assert billions == pytest.approx(BILLIONS[name], rel=5e-3)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_matter(name: str) -> None:
    spec = published(name)
    assert {field: getattr(spec, field) for field in NUMBERS[name]} == NUMBERS[name]


@pytest.mark.parametrize("name", ROPES)
def test_rotary_embedding(name: str) -> None:
    assert published(name).rope == ROPES[name]


@pytest.mark.parametrize("name", EXPERTS)
def test_experts(name: str) -> None:
    moe = published(name).moe
    assert moe is not None and (moe.num_experts, moe.top_k, moe.renormalize) == EXPERTS[name]


def test_window_of_mpt_does_not_count_the_token_itself() -> None:
    """MPT's window of 4 is a token and the 4 before it, which every other family calls 5."""
    values = json.loads((CONFIGS / "mpt-7b.json").read_text())
    values["attn_config"]["sliding_window_size"] = 4
    assert from_transformers(values)[1].sliding_window == 5
