"""The config.json of the older TensorRT-LLM checkpoints: one vocabulary of fields for every architecture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from builders.errors import ConfigError
from builders.families.fields import Fields
from builders.families.rope import rope_spec
from builders.families.view import Family
from builders.mapping import Mapping as RankMapping
from builders.spec import Activation, ModelSpec, MoeSpec, NormKind, PositionKind, RopeSpec


@dataclass(frozen=True, kw_only=True)
class _Architecture:
    """What the name of an architecture says and no field does."""

    norm: NormKind = "layernorm"
    norm_bias: bool = True
    """Where it does not follow the field `bias`."""
    gated: bool = False
    bias_fields: tuple[str, str] = ("bias", "bias")
    """Of attention and of the MLP."""
    bias: bool = False
    """Where those fields are left out."""


_LLAMA = _Architecture(norm="rmsnorm", norm_bias=False, gated=True, bias_fields=("attn_bias", "mlp_bias"))
_ARCHITECTURES: Mapping[str, _Architecture] = {
    "GPTForCausalLM": _Architecture(bias=True),
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "MixtralForCausalLM": _LLAMA,
    "MPTForCausalLM": _Architecture(norm_bias=False),
    "DbrxForCausalLM": _Architecture(norm_bias=False, gated=True),
}

_ACTIVATIONS: Mapping[str, tuple[Activation, bool]] = {
    "gelu": ("gelu_tanh", False),
    "gelu_new": ("gelu_tanh", False),
    "gelu_fast": ("gelu_tanh", False),
    "gelu_pytorch_tanh": ("gelu_tanh", False),
    "relu": ("relu", False),
    "squared-relu": ("relu2", False),
    "relu2": ("relu2", False),
    "silu": ("silu", False),
    "swiglu": ("silu", True),
    "fast-swiglu": ("silu", True),
    "geglu": ("gelu_tanh", True),
}
"""The activation, and whether it is gated; GELU was always computed in its tanh form."""

_POSITIONS: Mapping[str, PositionKind] = {
    "learned_absolute": "learned",
    "rope_gpt_neox": "rope",
    "alibi": "alibi",
}

_EXPECTED = {
    "residual_mlp": (False, None),
    "inner_layernorm": (False, None),
    "norm_before_bmm1": (False, None),
    "use_prompt_tuning": (False, None),
    "fc_after_embed": (False, None),
    "use_input_layernorm_in_first_layer": (True, None),
    "use_last_layernorm": (True, None),
    "layer_idx_offset": (0, None),
    "attention_multiplier": (1.0, None),
    "residual_multiplier": (1.0, None),
}
"""Fields that this decoder has no other value of."""

_HARMLESS = frozenset(
    """
    logits_dtype gpt_variant remove_duplicated_kv_heads disable_weight_only_quant_plugin runtime_defaults
    producer has_partial_lora_mask max_beam_width moe.tp_mode moe.sparse_mixer_epsilon moe_tp_mode
    mapping.gpus_per_node mapping.rank mapping.auto_parallel mapping.enable_attention_dp
    quantization.group_size quantization.smoothquant_val quantization.clamp_val
    quantization.use_meta_recipe quantization.has_zero_point quantization.pre_quant_scale
    quantization.exclude_modules
    """.split()
)

FAMILY = Family(name="tensorrt_llm", views=lambda _spec: {}, harmless=_HARMLESS)
"""Configurations only: no weights are read in this layout."""


def read_config(values: Mapping[str, object], ignored: frozenset[str]) -> tuple[ModelSpec, str, RankMapping]:
    """The model, what its weights are stored as, and the layout that it was made for."""
    fields = Fields(values)
    spec, dtype = _spec(fields), _dtype(fields)
    layout = _layout(fields, spec)
    quantization = fields.sub("quantization")
    for name in ("quant_algo", "kv_cache_quant_algo"):
        quantization.expect(name, None, why="quantized weights are not built; leave it out")
    fields.check_all_read(_HARMLESS | ignored)
    return spec, dtype, layout


def _spec(fields: Fields) -> ModelSpec:
    kind, known = _architecture(fields), ", ".join(_POSITIONS)
    for name, allowed in _EXPECTED.items():
        fields.expect(name, *allowed, why=f"only {allowed[0]} is supported")
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    head_dim = fields.optional_size("head_size") or hidden // heads
    position = fields.take("position_embedding_type", "learned_absolute")
    if not isinstance(position, str) or position not in _POSITIONS:
        raise fields.error("position_embedding_type", position, f"known: {known}")
    activation, gated = _activation(fields)
    attention_bias, mlp_bias = (fields.flag(name, kind.bias) for name in kind.bias_fields)
    positions = fields.size("max_position_embeddings")
    return ModelSpec(
        family=FAMILY.name,
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        num_layers=fields.size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=fields.optional_size("num_key_value_heads") or heads,
        head_dim=head_dim,
        intermediate_size=fields.optional_size("intermediate_size") or 4 * hidden,
        max_positions=positions,
        norm=kind.norm,
        norm_eps=fields.number("norm_epsilon", 1e-5),
        norm_bias=kind.norm_bias or (kind.norm == "layernorm" and attention_bias),
        position=_POSITIONS[position],
        rope=_rope(fields, head_dim, positions, used=_POSITIONS[position] == "rope"),
        alibi_bias_max=fields.number("alibi_bias_max", 8.0),
        activation=activation,
        gated=gated or kind.gated,
        moe=_moe(fields),
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        mlp_bias=mlp_bias,
        attention_scale=head_dim**-0.5 / _positive(fields, "q_scaling"),
        scale_by_layer=fields.flag("apply_query_key_layer_scaling"),
        clip_qkv=fields.optional_number("clip_qkv"),
        qk_norm="head" if fields.flag("qk_layernorm") else None,
        tied_embeddings=fields.flag("share_embedding_table") or fields.flag("tie_word_embeddings"),
        embedding_scale=_embedding_scale(fields),
        logit_scale=fields.number("output_multiplier_scale", 1.0),
    )


def _architecture(fields: Fields) -> _Architecture:
    name = fields.take("architecture")
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        raise fields.error("architecture", name, f"unknown; known: {', '.join(_ARCHITECTURES)}")
    return _ARCHITECTURES[name]


def _activation(fields: Fields) -> tuple[Activation, bool]:
    name = fields.take("hidden_act", "gelu")
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise fields.error("hidden_act", name, f"unknown activation; known: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _embedding_scale(fields: Fields) -> float:
    scale = fields.optional_number("embedding_scale")
    return fields.number("embedding_multiplier", 1.0) if scale is None else scale


def _rope(fields: Fields, head_dim: int, positions: int, *, used: bool) -> RopeSpec | None:
    base, part = fields.number("rotary_base", 10000.0), _positive(fields, "rotary_pct", most=1.0)
    dims, scaling = fields.optional_size("rotary_embedding_dim"), fields.take("rotary_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise fields.error("rotary_scaling", scaling, "must be an object")
    if not used:
        return None
    kind = {"rope_type": scaling["type"]} if "type" in scaling else {}
    written = {**scaling, **kind, "rope_theta": base}
    whole = rope_spec(Fields({"rope_parameters": written}), head_dim=head_dim, max_positions=positions)
    return replace(whole, rotary_dim=min(dims or int(head_dim * part), head_dim))


def _positive(fields: Fields, name: str, most: float = math.inf) -> float:
    value = fields.number(name, 1.0)
    if not 1e-6 <= value <= most:
        raise fields.error(name, value, f"must be above 0 and at most {most}")
    return value


def _moe(fields: Fields) -> MoeSpec | None:
    """In an object of its own, or in the fields that came before it."""
    moe = fields.sub("moe")
    names = ("num_experts", "top_k", "normalization_mode")
    experts, top_k, mode = (moe.take(name, fields.take(f"moe_{name}")) for name in names)
    if not experts:
        return None
    if mode not in (0, 1, None):
        raise moe.error("normalization_mode", mode, "known: 0, 1")
    for name, value in (("num_experts", experts), ("top_k", top_k)):
        if type(value) is not int:
            raise moe.error(name, value, "must be a whole number of at least 1")
    return MoeSpec(num_experts=experts, top_k=top_k, renormalize=mode != 0)


def _dtype(fields: Fields) -> str:
    dtype = fields.take("dtype")
    if dtype not in ("float32", "float16", "bfloat16"):
        raise fields.error("dtype", dtype, "known: float32, float16, bfloat16")
    fields.expect("kv_dtype", dtype, None, why=f"the cache has the dtype of the model, {dtype}")
    return str(dtype)


def _layout(fields: Fields, spec: ModelSpec) -> RankMapping:
    sizes = fields.sub("mapping")
    tp_size, pp_size = sizes.size("tp_size", 1), sizes.size("pp_size", 1)
    ep_size = sizes.optional_size("moe_ep_size") or 1
    sizes.expect("cp_size", 1, None, why="context parallelism is not supported")
    sizes.expect("moe_tp_size", tp_size // ep_size, None, why=f"tp_size={tp_size}, moe_ep_size={ep_size}")
    world_size = sizes.size("world_size", tp_size * pp_size)
    if world_size != tp_size * pp_size:
        raise ConfigError(
            f"config field mapping.world_size={world_size}: must be tp_size={tp_size} x pp_size={pp_size}"
        )
    split = fields.flag("use_parallel_embedding")
    dimension = fields.take("embedding_sharding_dim", 0)
    if dimension not in (0, 1):
        raise fields.error("embedding_sharding_dim", dimension, "known: 0, 1")
    return RankMapping(
        tp_size=tp_size,
        pp_size=pp_size,
        ep_size=ep_size if spec.moe else 1,
        embedding_split=("hidden" if dimension else "vocab") if split else "none",
    )
