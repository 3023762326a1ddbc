"""MPT as its makers define it: ALiBi, optional biases, clipped or normalized q and k, grouped queries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from builders.families.fields import Fields
from builders.families.view import Family, View, view
from builders.spec import ModelSpec, NormKind, PositionKind

_NORMS: Mapping[str, NormKind] = {
    "low_precision_layernorm": "layernorm",
    "layernorm": "layernorm",
    "low_precision_rmsnorm": "rmsnorm",
    "rmsnorm": "rmsnorm",
}


def _spec(fields: Fields) -> ModelSpec:
    hidden, heads = fields.size("d_model"), fields.size("n_heads")
    if hidden % heads:
        raise fields.error("n_heads", heads, f"must divide d_model={hidden}")
    attention, norm = fields.sub("attn_config"), fields.take("norm_type")
    if not isinstance(norm, str) or norm not in _NORMS:
        raise fields.error("norm_type", norm, f"unknown; known: {', '.join(_NORMS)}")
    _refuse_unsupported(attention)
    bias = not fields.flag("no_bias")
    scale = attention.optional_number("softmax_scale")
    return ModelSpec(
        family="mpt",
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        num_layers=fields.size("n_layers"),
        num_heads=heads,
        num_kv_heads=_kv_heads(attention, heads),
        head_dim=hidden // heads,
        intermediate_size=_width(fields, hidden),
        max_positions=fields.size("max_seq_len"),
        norm=_NORMS[norm],
        norm_eps=fields.number("norm_eps", fields.number("layer_norm_epsilon")),
        norm_bias=bias and _NORMS[norm] == "layernorm",
        position=_position(fields, attention),
        alibi_bias_max=attention.number("alibi_bias_max"),
        activation="gelu",
        qkv_bias=bias,
        attention_out_bias=bias,
        mlp_bias=bias,
        attention_scale=(hidden // heads) ** -0.5 if scale is None else scale,
        sliding_window=_window(attention),
        clip_qkv=attention.optional_number("clip_qkv") or None,
        qk_norm=_qk_norm(attention),
        tied_embeddings=fields.flag("tie_word_embeddings"),
        logit_scale=_logit_scale(fields, hidden),
    )


def _refuse_unsupported(attention: Fields) -> None:
    attention.expect("prefix_lm", False, None, why="prefix attention is not supported")
    attention.expect("attn_uses_sequence_id", False, None, why="sequence ids are not supported")
    attention.expect("fused_qkv", True, None, why="q, k and v in tensors of their own are not supported")
    attention.expect("rope", False, None, why="rotary MPT models are not supported")


def _kv_heads(attention: Fields, heads: int) -> int:
    kind = attention.written("attn_type") or "multihead_attention"
    if kind == "grouped_query_attention":
        return attention.size("kv_n_heads")
    kinds = {"multihead_attention": heads, "multiquery_attention": 1}
    if not isinstance(kind, str) or kind not in kinds:
        raise attention.error("attn_type", kind, f"known: {', '.join(kinds)}, grouped_query_attention")
    attention.expect("kv_n_heads", None, kinds[kind], why=f"{kind} has {kinds[kind]}")
    return kinds[kind]


def _width(fields: Fields, hidden: int) -> int:
    ffn = fields.sub("ffn_config")
    ffn.expect("ffn_type", "mptmlp", None, why="known: mptmlp")
    given, ratio = ffn.optional_size("ffn_hidden_size"), fields.written("expansion_ratio")
    ratio = 4 if ratio is None else ratio
    if type(ratio) not in (int, float) or not 1 <= ratio * hidden < math.inf:
        raise fields.error("expansion_ratio", ratio, "must be a number above 0")
    return given or int(ratio * hidden)


def _position(fields: Fields, attention: Fields) -> PositionKind:
    learned = fields.flag("learned_pos_emb")
    if attention.flag("alibi"):
        return "alibi"
    return "learned" if learned else "none"


def _window(attention: Fields) -> int | None:
    """MPT counts the tokens before the token itself, and -1 is no window."""
    window = attention.take("sliding_window_size", -1)
    return None if window in (-1, None) else attention.size("sliding_window_size") + 1


def _qk_norm(attention: Fields) -> Literal["whole", "head"] | None:
    whole, head = attention.flag("qk_ln"), attention.flag("qk_gn")
    if whole and head:
        raise attention.error("qk_gn", head, "qk_ln is given too; one of them")
    return "whole" if whole else "head" if head else None


def _logit_scale(fields: Fields, hidden: int) -> float:
    scale = fields.take("logit_scale")
    if scale == "inv_sqrt_d_model":
        return float(hidden**-0.5)
    if isinstance(scale, str):
        raise fields.error("logit_scale", scale, "must be a number or inv_sqrt_d_model")
    return fields.number("logit_scale", 1.0)


def _views(spec: ModelSpec) -> Mapping[str, View]:
    fused = "blocks.{i}.attn.Wqkv"
    return {
        "embed": view("wte"),
        "positions": view("wpe"),
        "layers.{i}.attn_norm": view("blocks.{i}.norm_1"),
        "layers.{i}.attn.q": view(fused),
        "layers.{i}.attn.k": view(fused, offset=spec.q_size),
        "layers.{i}.attn.v": view(fused, offset=spec.q_size + spec.kv_size),
        "layers.{i}.attn.q_norm": view("blocks.{i}.attn.q_ln"),
        "layers.{i}.attn.k_norm": view("blocks.{i}.attn.k_ln"),
        "layers.{i}.attn.o": view("blocks.{i}.attn.out_proj"),
        "layers.{i}.mlp_norm": view("blocks.{i}.norm_2"),
        "layers.{i}.mlp.up": view("blocks.{i}.ffn.up_proj"),
        "layers.{i}.mlp.down": view("blocks.{i}.ffn.down_proj"),
        "norm": view("norm_f"),
        "head": view("wte" if spec.tied_embeddings else "lm_head"),
    }


def _for_transformers(values: dict[str, Any]) -> dict[str, Any]:
    """Transformers' class refuses the attention type and the ratios that it does not run itself."""
    attention = values.get("attn_config")
    if isinstance(attention, dict):
        values = {**values, "attn_config": {k: v for k, v in attention.items() if k != "attn_type"}}
    return {name: value for name, value in values.items() if name != "expansion_ratio"}


FAMILY = Family(
    name="mpt",
    model_types=["mpt"],
    spec=_spec,
    views=_views,
    prepare=_for_transformers,
    prefixes=["transformer."],
    harmless=frozenset(
        """
        init_device init_config embedding_fraction verbose tokenizer_name attn_config.attn_impl
        attn_config.attn_pdrop fc_type use_pad_tok_in_ffn ffn_config.fc_type
        attn_config.rope_theta attn_config.rope_impl attn_config.rope_dail_config attn_config.rope_hf_config
        """.split()
    ),
)
