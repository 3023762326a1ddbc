"""Made-up specs of what the families can make and no Transformers class of theirs has."""

from __future__ import annotations

from dataclasses import replace

from builders.families import from_transformers
from builders.spec import ModelSpec, MoeSpec, RopeSpec
from tests.oracle import MODELS

GPT = ModelSpec(
    family="nemo",
    vocab_size=101,
    hidden_size=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=72,
    max_positions=64,
    norm="layernorm1p",
    norm_eps=1e-5,
    norm_bias=True,
    position="rope",
    rope=RopeSpec(rotary_dim=8),
    activation="relu2",
    attention_scale=0.25,
)

BEYOND = {
    "nemo-relu2": GPT,
    "nemo-swiglu": replace(GPT, activation="silu", gated=True),
    "nemo-biases": replace(GPT, activation="gelu", qkv_bias=True, attention_out_bias=True, mlp_bias=True),
    "nemo-learned": replace(GPT, position="learned", rope=None, activation="gelu_tanh", tied_embeddings=True),
    "no-positions": replace(GPT, position="none", rope=None, activation="relu", num_kv_heads=4),
    "embedding-scale": replace(GPT, embedding_scale=3.0, norm="rmsnorm", norm_bias=False),
    "head-bias": replace(GPT, head_bias=True, logit_scale=0.5),
    "mpt-qk-norm-whole": replace(
        GPT, norm="layernorm", position="alibi", rope=None, qk_norm="whole", clip_qkv=0.7
    ),
    "mpt-qk-norm-whole-rms": replace(
        GPT, norm="rmsnorm", norm_bias=False, position="alibi", rope=None, qk_norm="whole", logit_scale=0.3
    ),
    "mpt-qk-norm-head": replace(GPT, norm="layernorm", position="alibi", rope=None, qk_norm="head"),
    "mpt-window": replace(GPT, norm="layernorm", position="alibi", rope=None, sliding_window=3),
    "experts-relu": replace(
        GPT, moe=MoeSpec(num_experts=4, top_k=3, renormalize=True), norm="rmsnorm", norm_bias=False
    ),
}


def spec_of(name: str) -> ModelSpec:
    if name in BEYOND:
        return BEYOND[name]
    _family, spec = from_transformers(MODELS[name]().to_dict())
    return spec
