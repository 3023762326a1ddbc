"""GPT-2 and the first SantaCoder: learned positions, weights stored [in, out], fused q, k, v."""

from __future__ import annotations

from collections.abc import Mapping

from builders.families.fields import Fields
from builders.families.view import Family, View, view
from builders.spec import ModelSpec


def _spec(fields: Fields) -> ModelSpec:
    hidden, heads = fields.size("n_embd"), fields.size("n_head")
    if hidden % heads:
        raise fields.error("n_head", heads, f"must divide n_embd={hidden}")
    fields.expect("add_cross_attention", False, None, why="cross-attention is not supported")
    fields.expect("attention_head_type", "multihead", "multiquery", why="known: multihead, multiquery")
    multi_query = fields.take("attention_head_type") == "multiquery"
    scaled = fields.flag("scale_attn_weights", True)
    return ModelSpec(
        family="gpt2",
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        num_layers=fields.size("n_layer"),
        num_heads=heads,
        num_kv_heads=1 if multi_query else heads,
        head_dim=hidden // heads,
        intermediate_size=fields.optional_size("n_inner") or 4 * hidden,
        max_positions=fields.size("n_positions"),
        norm="layernorm",
        norm_eps=fields.number("layer_norm_epsilon"),
        norm_bias=True,
        position="learned",
        activation=fields.activation("activation_function"),
        qkv_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        attention_scale=(hidden // heads) ** -0.5 if scaled else 1.0,
        scale_by_layer=fields.flag("scale_attn_by_inverse_layer_idx"),
        tied_embeddings=fields.flag("tie_word_embeddings", True),
    )


def _views(spec: ModelSpec) -> Mapping[str, View]:
    width = spec.hidden_size
    return {
        "embed": view("wte"),
        "positions": view("wpe"),
        "layers.{i}.attn_norm": view("h.{i}.ln_1"),
        **(_multi_query(spec) if spec.num_kv_heads < spec.num_heads else _multi_head(width)),
        "layers.{i}.attn.o": view("h.{i}.attn.c_proj", transposed=True),
        "layers.{i}.mlp_norm": view("h.{i}.ln_2"),
        "layers.{i}.mlp.up": view("h.{i}.mlp.c_fc", transposed=True),
        "layers.{i}.mlp.down": view("h.{i}.mlp.c_proj", transposed=True),
        "norm": view("ln_f"),
        "head": view("wte" if spec.tied_embeddings else "lm_head"),
    }


def _multi_head(width: int) -> Mapping[str, View]:
    return {
        f"layers.{{i}}.attn.{name}": view("h.{i}.attn.c_attn", transposed=True, offset=n * width)
        for n, name in enumerate("qkv")
    }


def _multi_query(spec: ModelSpec) -> Mapping[str, View]:
    shared = "h.{i}.attn.kv_attn"
    return {
        "layers.{i}.attn.q": view("h.{i}.attn.q_attn", transposed=True),
        "layers.{i}.attn.k": view(shared, transposed=True),
        "layers.{i}.attn.v": view(shared, transposed=True, offset=spec.head_dim),
    }


FAMILY = Family(
    name="gpt2",
    model_types=["gpt2"],
    spec=_spec,
    views=_views,
    prefixes=["transformer."],
    ignored=r"h\.\d+\.attn\.(bias|masked_bias)",
    harmless=frozenset({"n_ctx", "reorder_and_upcast_attn", "attention_softmax_in_fp32"}),
)
