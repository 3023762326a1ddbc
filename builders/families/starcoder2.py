"""StarCoder 2: rotary positions, grouped queries, sliding window, biases everywhere."""

from __future__ import annotations

from collections.abc import Mapping

from builders.families.fields import Fields
from builders.families.rope import rope_spec
from builders.families.view import Family, View, view
from builders.spec import ModelSpec


def _spec(fields: Fields) -> ModelSpec:
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    head_dim = fields.optional_size("head_dim") or hidden // heads
    positions = fields.size("max_position_embeddings")
    bias = fields.flag("use_bias")
    fields.expect("mlp_type", "default", why="known: default")
    fields.expect("scale_attn_weights", True, None, why="unscaled attention is not supported")
    fields.expect("norm_type", "layer_norm", why="known: layer_norm")
    return ModelSpec(
        family="starcoder2",
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        num_layers=fields.size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=fields.size("num_key_value_heads"),
        head_dim=head_dim,
        intermediate_size=fields.size("intermediate_size"),
        max_positions=positions,
        norm="layernorm",
        norm_eps=fields.number("norm_epsilon"),
        norm_bias=True,
        position="rope",
        rope=rope_spec(fields, head_dim=head_dim, max_positions=positions),
        activation=fields.activation("hidden_act"),
        qkv_bias=bias,
        attention_out_bias=bias,
        mlp_bias=bias,
        attention_scale=head_dim**-0.5,
        sliding_window=fields.optional_size("sliding_window"),
        tied_embeddings=fields.flag("tie_word_embeddings"),
    )


def _views(spec: ModelSpec) -> Mapping[str, View]:
    attention = "layers.{i}.self_attn"
    return {
        "embed": view("embed_tokens"),
        "layers.{i}.attn_norm": view("layers.{i}.input_layernorm"),
        **{f"layers.{{i}}.attn.{name}": view(f"{attention}.{name}_proj") for name in "qkvo"},
        "layers.{i}.mlp_norm": view("layers.{i}.post_attention_layernorm"),
        "layers.{i}.mlp.up": view("layers.{i}.mlp.c_fc"),
        "layers.{i}.mlp.down": view("layers.{i}.mlp.c_proj"),
        "norm": view("norm"),
        "head": view("embed_tokens" if spec.tied_embeddings else "lm_head"),
    }


FAMILY = Family(
    name="starcoder2",
    model_types=["starcoder2"],
    spec=_spec,
    views=_views,
    prefixes=["model."],
    ignored=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    harmless=frozenset(
        {
            "attention_softmax_in_fp32",
            "scale_attention_softmax_in_fp32",
            "activation_function",
            "layer_norm_epsilon",
            "use_sliding_window",
        }
    ),
)
