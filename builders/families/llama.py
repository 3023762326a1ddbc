"""LLaMA 1 to 3, CodeLlama and Mistral from Hugging Face files."""

from __future__ import annotations

from collections.abc import Mapping

from builders.families.fields import Fields
from builders.families.rope import rope_spec
from builders.families.view import Family, View, view
from builders.spec import ModelSpec


def read_spec(fields: Fields) -> ModelSpec:
    """What a configuration of LLaMA, or of a family that builds on it, asks for."""
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    head_dim = fields.optional_size("head_dim") or hidden // heads
    positions = fields.size("max_position_embeddings")
    bias = fields.flag("attention_bias")
    return ModelSpec(
        family="llama",
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        num_layers=fields.size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=fields.size("num_key_value_heads", heads),
        head_dim=head_dim,
        intermediate_size=fields.size("intermediate_size"),
        max_positions=positions,
        norm="rmsnorm",
        norm_eps=fields.number("rms_norm_eps"),
        position="rope",
        rope=rope_spec(fields, head_dim=head_dim, max_positions=positions),
        activation=fields.activation("hidden_act"),
        gated=True,
        qkv_bias=bias,
        attention_out_bias=bias,
        mlp_bias=fields.flag("mlp_bias"),
        attention_scale=head_dim**-0.5,
        sliding_window=_window(fields),
        tied_embeddings=fields.flag("tie_word_embeddings"),
    )


def _window(fields: Fields) -> int | None:
    """LLaMA has none in Transformers, whatever its configuration says; Mistral and Mixtral have."""
    if fields.written("model_type") != "llama":
        return fields.optional_size("sliding_window")
    fields.without("sliding_window", "Transformers' LLaMA has no window; to have none here too")
    return None


def views(spec: ModelSpec) -> Mapping[str, View]:
    """Where LLaMA keeps its parameters."""
    attention, mlp = "layers.{i}.self_attn", "layers.{i}.mlp"
    return {
        "embed": view("embed_tokens"),
        "layers.{i}.attn_norm": view("layers.{i}.input_layernorm"),
        **{f"layers.{{i}}.attn.{name}": view(f"{attention}.{name}_proj") for name in "qkvo"},
        "layers.{i}.mlp_norm": view("layers.{i}.post_attention_layernorm"),
        **{f"layers.{{i}}.mlp.{name}": view(f"{mlp}.{name}_proj") for name in ("gate", "up", "down")},
        "norm": view("norm"),
        "head": view("embed_tokens" if spec.tied_embeddings else "lm_head"),
    }


FAMILY = Family(
    name="llama",
    model_types=["llama", "mistral"],
    spec=read_spec,
    views=views,
    prefixes=["model."],
    ignored=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq|rotary_emb\.inv_freq",
    harmless=frozenset({"max_sequence_length"}),
)
