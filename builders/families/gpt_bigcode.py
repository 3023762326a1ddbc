"""SantaCoder, StarCoder and Granite 20B/34B code: GPT-2 with multi-query attention and plain weights."""

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
    return ModelSpec(
        family="gpt_bigcode",
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        num_layers=fields.size("n_layer"),
        num_heads=heads,
        num_kv_heads=1 if fields.flag("multi_query") else heads,
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
        attention_scale=(hidden // heads) ** -0.5 if fields.flag("scale_attn_weights") else 1.0,
        tied_embeddings=fields.flag("tie_word_embeddings"),
    )


def _views(spec: ModelSpec) -> Mapping[str, View]:
    return {
        "embed": view("wte"),
        "positions": view("wpe"),
        "layers.{i}.attn_norm": view("h.{i}.ln_1"),
        **(_multi_query(spec) if spec.num_kv_heads < spec.num_heads else _multi_head(spec.head_dim)),
        "layers.{i}.attn.o": view("h.{i}.attn.c_proj"),
        "layers.{i}.mlp_norm": view("h.{i}.ln_2"),
        "layers.{i}.mlp.up": view("h.{i}.mlp.c_fc"),
        "layers.{i}.mlp.down": view("h.{i}.mlp.c_proj"),
        "norm": view("ln_f"),
        "head": view("wte" if spec.tied_embeddings else "lm_head"),
    }


def _multi_query(spec: ModelSpec) -> Mapping[str, View]:
    """All query heads, then the one key head, then the one value head."""
    offsets = {"q": 0, "k": spec.q_size, "v": spec.q_size + spec.head_dim}
    return {
        f"layers.{{i}}.attn.{name}": view("h.{i}.attn.c_attn", offset=offset)
        for name, offset in offsets.items()
    }


def _multi_head(head_dim: int) -> Mapping[str, View]:
    """Head by head: its query, its key, its value."""
    return {
        f"layers.{{i}}.attn.{name}": view(
            "h.{i}.attn.c_attn", offset=n * head_dim, block=head_dim, stride=3 * head_dim
        )
        for n, name in enumerate("qkv")
    }


FAMILY = Family(
    name="gpt_bigcode",
    model_types=["gpt_bigcode"],
    spec=_spec,
    views=_views,
    prefixes=["transformer."],
    ignored=r"h\.\d+\.attn\.(bias|masked_bias)|bias",
    harmless=frozenset(
        """
        attention_softmax_in_fp32 scale_attention_softmax_in_fp32 num_key_value_heads n_ctx
        validate_runner_input inference_runner pre_allocate_kv_cache max_sequence_length max_batch_size
        pad_key_length
        """.split()
    ),
)
