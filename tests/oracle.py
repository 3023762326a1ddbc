"""Tiny models of Transformers' own classes, one for every row and sub-row of the table of families."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import (
    DbrxConfig,
    GPT2Config,
    GPTBigCodeConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    MptConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Starcoder2Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

VOCAB, LAYERS, POSITIONS = 101, 3, 64
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def _common(**changes: Any) -> dict[str, Any]:
    sizes = {
        "vocab_size": VOCAB,
        "num_hidden_layers": LAYERS,
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS,
        **TOKENS,
    }
    return sizes | changes


def llama(**changes: Any) -> LlamaConfig:
    return LlamaConfig(**_common(**changes))


def rope(kind: str, **changes: Any) -> LlamaConfig:
    return llama(rope_parameters={"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, **changes})


def mistral(**changes: Any) -> MistralConfig:
    return MistralConfig(**_common(**changes))


def mixtral(**changes: Any) -> MixtralConfig:
    return MixtralConfig(**_common(**{"num_local_experts": 4, "num_experts_per_tok": 2, **changes}))


def starcoder2(**changes: Any) -> Starcoder2Config:
    return Starcoder2Config(**_common(**changes))


def gpt2(**changes: Any) -> GPT2Config:
    sizes = {"vocab_size": VOCAB, "n_embd": 48, "n_head": 4, "n_layer": LAYERS, "n_positions": POSITIONS}
    return GPT2Config(**sizes | TOKENS | changes)


def bigcode(**changes: Any) -> GPTBigCodeConfig:
    sizes = {"vocab_size": VOCAB, "n_embd": 48, "n_head": 4, "n_layer": LAYERS, "n_positions": POSITIONS}
    return GPTBigCodeConfig(**sizes | TOKENS | changes)


def mpt(**changes: Any) -> MptConfig:
    sizes = {"vocab_size": VOCAB, "d_model": 48, "n_heads": 4, "n_layers": LAYERS, "max_seq_len": POSITIONS}
    return MptConfig(**sizes | TOKENS | changes)


def dbrx(experts: int = 4, top_k: int = 2, weights: float | None = 1.0, **changes: Any) -> DbrxConfig:
    attention = {"kv_n_heads": 2, "clip_qkv": 0.6, "rope_theta": 5e5}
    ffn = {"ffn_hidden_size": 24, "moe_num_experts": experts, "moe_top_k": top_k}
    ffn["moe_normalize_expert_weights"] = weights  # type: ignore[assignment]
    sizes = {"vocab_size": VOCAB, "d_model": 48, "n_heads": 4, "n_layers": LAYERS, "max_seq_len": POSITIONS}
    return DbrxConfig(attn_config=attention, ffn_config=ffn, **sizes | TOKENS | changes)


SHORT, LONG = [1.0] * 3 + [1.5] * 3, [2.0] * 3 + [5.0] * 3

MODELS: Mapping[str, Callable[[], PreTrainedConfig]] = {
    "gpt2": gpt2,
    "gpt2-untied": lambda: gpt2(tie_word_embeddings=False),
    "gpt2-scale-by-layer": lambda: gpt2(scale_attn_by_inverse_layer_idx=True, n_inner=100),
    "gpt2-unscaled-relu": lambda: gpt2(scale_attn_weights=False, activation_function="relu"),
    "gpt_bigcode-multi-query": bigcode,
    "gpt_bigcode-multi-head": lambda: bigcode(multi_query=False, activation_function="gelu"),
    "starcoder2": lambda: starcoder2(sliding_window=9),
    "starcoder2-untied-no-bias": lambda: starcoder2(tie_word_embeddings=False, use_bias=False),
    "starcoder2-one-kv-head": lambda: starcoder2(num_key_value_heads=1),
    "llama1": lambda: llama(num_key_value_heads=4),
    "llama2-gqa": llama,
    "llama-tied": lambda: llama(tie_word_embeddings=True),
    "llama-head-dim": lambda: llama(head_dim=20),
    "llama-biases": lambda: llama(attention_bias=True, mlp_bias=True),
    "llama-rope-linear": lambda: rope("linear"),
    "llama-rope-dynamic": lambda: rope("dynamic"),
    "llama-rope-llama3": lambda: rope(
        "llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
    ),
    "llama-rope-yarn": lambda: rope("yarn", original_max_position_embeddings=16),
    "llama-rope-yarn-mscale": lambda: rope(
        "yarn",
        original_max_position_embeddings=16,
        truncate=False,
        mscale=1.2,
        mscale_all_dim=0.7,
        beta_fast=16.0,
    ),
    "llama-rope-yarn-attention-factor": lambda: rope(
        "yarn", original_max_position_embeddings=16, attention_factor=1.3
    ),
    "llama-rope-longrope": lambda: rope(
        "longrope", short_factor=SHORT, long_factor=LONG, original_max_position_embeddings=16
    ),
    "codellama": lambda: llama(vocab_size=113, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "mistral": lambda: mistral(sliding_window=7),
    "mistral-no-window": lambda: mistral(sliding_window=None, head_dim=16),
    "mpt": mpt,
    "mpt-six-heads": lambda: mpt(n_heads=6, d_model=48),
    "mpt-clip-scale": lambda: mpt(attn_config={"clip_qkv": 0.6, "softmax_scale": 0.2}),
    "mixtral": mixtral,
    "mixtral-window-head-dim": lambda: mixtral(sliding_window=7, head_dim=16),
    "dbrx": dbrx,
    "dbrx-16-top-4": lambda: dbrx(experts=16, top_k=4),
    "dbrx-unnormalized": lambda: dbrx(weights=None),
}


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Weights with enough spread that a wrong slice, order or scale shows in the logits."""
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    randomize(model)
    return model  # type: ignore[no-any-return]


def randomize(model: nn.Module) -> None:
    """Matrices around zero, norms around one, biases far from zero."""
    generator = torch.Generator().manual_seed(7)
    for name, weight in model.named_parameters():
        center = 0.8 if weight.dim() == 1 and name.endswith("weight") else 0.0
        weight.data = center + 0.15 * torch.randn(weight.shape, generator=generator)
