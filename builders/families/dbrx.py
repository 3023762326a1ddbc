"""DBRX: experts in fused tensors, clipped q, k, v, LayerNorm without bias."""

from __future__ import annotations

from collections.abc import Mapping

from builders.families.fields import ACTIVATIONS, Fields
from builders.families.rope import rope_spec
from builders.families.view import Family, View, view
from builders.spec import Activation, ModelSpec, MoeSpec, RopeSpec


def _spec(fields: Fields) -> ModelSpec:
    hidden, heads = fields.size("d_model"), fields.size("n_heads")
    if hidden % heads:
        raise fields.error("n_heads", heads, f"must divide d_model={hidden}")
    attention, ffn = fields.sub("attn_config"), fields.sub("ffn_config")
    head_dim, positions = hidden // heads, fields.size("max_seq_len")
    return ModelSpec(
        family="dbrx",
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        num_layers=fields.size("n_layers"),
        num_heads=heads,
        num_kv_heads=attention.size("kv_n_heads"),
        head_dim=head_dim,
        intermediate_size=ffn.size("ffn_hidden_size"),
        max_positions=positions,
        norm="layernorm",
        norm_eps=1e-5,
        position="rope",
        rope=_rope(fields, attention, head_dim, positions),
        activation=_activation(ffn),
        gated=True,
        moe=_moe(ffn),
        attention_scale=head_dim**-0.5,
        clip_qkv=attention.optional_number("clip_qkv"),
        tied_embeddings=fields.flag("tie_word_embeddings"),
    )


def _rope(fields: Fields, attention: Fields, head_dim: int, positions: int) -> RopeSpec:
    """Files of Transformers 5 say `rope_parameters`; the published ones `attn_config.rope_theta`."""
    older = attention.optional_number("rope_theta")
    if fields.written("rope_parameters") is not None or older is None:
        return rope_spec(fields, head_dim=head_dim, max_positions=positions)
    return RopeSpec(rotary_dim=head_dim, theta=older)


def _activation(ffn: Fields) -> Activation:
    value = ffn.take("ffn_act_fn") or {"name": "silu"}
    name = value.get("name", "silu") if isinstance(value, dict) and value.keys() <= {"name"} else value
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ffn.error("ffn_act_fn", value, f"unknown activation; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _moe(ffn: Fields) -> MoeSpec:
    power = ffn.optional_number("moe_normalize_expert_weights")
    if power not in (None, 1):
        why = "known: 1 (weights of the chosen experts add up to 1) and null"
        raise ffn.error("moe_normalize_expert_weights", power, why)
    return MoeSpec(
        num_experts=ffn.size("moe_num_experts"),
        top_k=ffn.size("moe_top_k"),
        renormalize=power is not None,
    )


def _views(spec: ModelSpec) -> Mapping[str, View]:
    attention, experts = "blocks.{i}.norm_attn_norm", "blocks.{i}.ffn.experts.mlp"
    fused, width = f"{attention}.attn.Wqkv", spec.intermediate_size
    return {
        "embed": view("wte"),
        "layers.{i}.attn_norm": view(f"{attention}.norm_1"),
        "layers.{i}.attn.q": view(fused),
        "layers.{i}.attn.k": view(fused, offset=spec.q_size),
        "layers.{i}.attn.v": view(fused, offset=spec.q_size + spec.kv_size),
        "layers.{i}.attn.o": view(f"{attention}.attn.out_proj"),
        "layers.{i}.mlp_norm": view(f"{attention}.norm_2"),
        "layers.{i}.moe.router": view("blocks.{i}.ffn.router.layer"),
        "layers.{i}.moe.experts.{e}.gate": view(f"{experts}.w1", bare=True, rows_per_expert=width),
        "layers.{i}.moe.experts.{e}.up": view(f"{experts}.v1", bare=True, rows_per_expert=width),
        "layers.{i}.moe.experts.{e}.down": view(
            f"{experts}.w2", bare=True, rows_per_expert=width, transposed=True
        ),
        "norm": view("norm_f"),
        "head": view("wte" if spec.tied_embeddings else "lm_head"),
    }


FAMILY = Family(
    name="dbrx",
    model_types=["dbrx"],
    spec=_spec,
    views=_views,
    prefixes=["transformer."],
    ignored=r"(.*\.)?rotary_emb\.inv_freq",
    harmless=frozenset(
        """
        num_key_value_heads ffn_config.moe_jitter_eps ffn_config.moe_loss_weight ffn_config.hidden_size
        rope_theta
        """.split()
    ),
)
