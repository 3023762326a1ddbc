"""GPT-Next and NeMo's plain GPT, in the older layout of names and in Megatron-core's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from builders.families.fields import LARGEST_SIZE, Fields
from builders.families.view import Family, View, view
from builders.sources.stored import Index
from builders.spec import Activation, ModelSpec, NormKind, PositionKind, RopeSpec

_NORMS: Mapping[str, NormKind] = {
    "layernorm": "layernorm",
    "low_precision_layernorm": "layernorm",
    "layernorm1p": "layernorm1p",
    "rmsnorm": "rmsnorm",
    "LayerNorm": "layernorm",
    "RMSNorm": "rmsnorm",
}
_POSITIONS: Mapping[str, PositionKind] = {
    "learned_absolute": "learned",
    "rope": "rope",
    "alibi": "alibi",
    "none": "none",
}
_ACTIVATIONS: Mapping[str, tuple[Activation, bool]] = {
    "gelu": ("gelu", False),
    "relu": ("relu", False),
    "squared-relu": ("relu2", False),
    "geglu": ("gelu", True),
    "fast-geglu": ("gelu", True),
    "swiglu": ("silu", True),
    "fast-swiglu": ("silu", True),
    "reglu": ("relu", True),
    "fast-reglu": ("relu", True),
}
"""The activation, and whether it is gated."""

HARMLESS = frozenset(
    """
    mcore_gpt micro_batch_size global_batch_size rampup_batch_size tensor_model_parallel_size
    pipeline_model_parallel_size virtual_pipeline_model_parallel_size expert_model_parallel_size
    context_parallel_size init_method_std use_scaled_init_method hidden_dropout ffn_dropout
    apply_query_key_layer_scaling do_layer_norm_weight_decay make_vocab_size_divisible_by pre_process
    post_process persist_layer_norm onnx_safe masked_softmax_fusion get_attention_mask_from_fusion
    apply_rope_fusion native_amp_init_scale native_amp_growth_interval hysteresis fp32_residual_connection
    fp16_lm_cross_entropy megatron_amp_O2 grad_allreduce_chunk_size_mb grad_div_ar_fusion
    gradient_accumulation_fusion bias_dropout_add_fusion seed resume_from_checkpoint use_cpu_initialization
    apex_transformer_log_level gradient_as_bucket_view sync_batch_comm activations_checkpoint_granularity
    activations_checkpoint_method activations_checkpoint_num_layers
    num_micro_batches_with_partial_activation_checkpoints activations_checkpoint_layers_per_pipeline
    sequence_parallel transformer_engine fp8 fp8_e4m3 fp8_hybrid fp8_margin fp8_interval
    fp8_amax_history_len fp8_amax_compute_algo fp8_wgrad fp8_params use_emha reduce_amax ub_tp_comm_overlap
    tp_comm_atomic_ag tp_comm_atomic_rs nsys_profile optim data precision target nemo_version
    restore_from_path use_flash_attention overlap_p2p_comm batch_p2p_comm name gc_interval
    deterministic_mode cpu_offloading cpu_offloading_num_layers cpu_offloading_activations
    cpu_offloading_weights embedding_init_method_std override_vocab_size encoder_seq_length dist_ckpt_format
    dist_ckpt_load_on_device dist_ckpt_parallel_save dist_ckpt_load_strictness dist_ckpt_parallel_load
    dist_ckpt_torch_dist_multiproc dist_ckpt_assume_constant_structure dist_ckpt_parallel_dist_opt
    memory_profile attention_dropout rotary_emb_fusion peft inference
    dist_ckpt_parallel_save_within_dp torch_distributed_checkpoint fsdp fsdp_sharding_strategy
    fsdp_grad_reduce_dtype fsdp_sharded_checkpoint fsdp_cpu_offload fsdp_use_orig_params
    fsdp_limit_all_gathers distributed_adam_bucket_merge_size nccl_communicator_config_path sharp
    use_tp_pp_dp_mapping validation_param_sync_overlap ub_tp_comm_overlap_cfg fp8_dot_product_attention
    fp8_multi_head_attention tp_only_amax_red use_te_rng_tracker enable_cuda_graph enable_megatron_timers
    megatron_timer_kwargs defer_embedding_wgrad_compute wgrad_deferral_limit memory_efficient_layer_norm
    pipeline_model_parallel_split_rank disable_parameter_transpose_cache answer_only_loss reset_lr
    reset_lr_steps save_nemo_on_validation_end log_train_loss pretrained_checkpoint
    inductor inductor_cudagraph attention_softmax_in_fp32
    """.split()
)
"""What NeMo writes for training; none of it changes what the model computes when it is run."""


def is_core(index: Index) -> bool:
    """Whether the names are Megatron-core's."""
    return any(".decoder.layers." in name for name in index)


def read_spec(fields: Fields, vocab_size: int) -> ModelSpec:
    """What model_config.yaml asks for."""
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    _refuse_unsupported(fields)
    head_dim = fields.optional_size("kv_channels") or hidden // heads
    norm = _one_of(fields, "normalization", "layernorm", _NORMS)
    activation, gated = _activation(fields)
    bias = fields.flag("bias", True)
    position = _one_of(fields, "position_embedding_type", "learned_absolute", _POSITIONS)
    return ModelSpec(
        family="nemo",
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_layers=fields.size("num_layers"),
        num_heads=heads,
        num_kv_heads=fields.optional_size("num_query_groups") or heads,
        head_dim=head_dim,
        intermediate_size=fields.optional_size("ffn_hidden_size") or 4 * hidden,
        max_positions=fields.size("max_position_embeddings"),
        norm=norm,
        norm_eps=fields.number("layernorm_epsilon", 1e-5),
        norm_bias=norm != "rmsnorm",
        position=position,
        rope=_rope(fields, head_dim, position),
        activation=activation,
        gated=gated,
        qkv_bias=fields.flag("qkv_bias") or bias,
        attention_out_bias=bias,
        mlp_bias=bias,
        attention_scale=head_dim**-0.5 if fields.flag("normalize_attention_scores", True) else 1.0,
        sliding_window=_window(fields),
        qk_norm="head" if fields.flag("qk_layernorm") else None,
        tied_embeddings=fields.flag("share_embeddings_and_output_weights", True),
        embedding_scale=hidden**0.5 if fields.flag("apply_embedding_scaling") else 1.0,
    )


def _refuse_unsupported(fields: Fields) -> None:
    fields.expect("transformer_block_type", "pre_ln", None, why="known: pre_ln")
    fields.expect("attention_type", "multihead", None, why="known: multihead")
    fields.expect("headscale", False, None, why="scaled heads are not supported")
    fields.expect("rotary_interleaved", False, None, why="interleaved rotary pairs are not supported")
    fields.expect("num_moe_experts", None, 0, why="NeMo's experts are not supported")
    fields.expect(
        "megatron_legacy", False, None, why="q, k and v in Megatron's first order are not supported"
    )
    fields.expect("scale_positional_embedding", False, None, why="scaled frequencies are not supported")
    fields.expect("apply_residual_connection_post_layernorm", False, None, why="known: false")
    custom = fields.sub("mcore_customization_config")
    for name in ("new_decoder_architecture", "parallel_attention"):
        custom.expect(name, False, None, why="Falcon's blocks are not supported")


T = TypeVar("T")


def _one_of(fields: Fields, name: str, default: str, known: Mapping[str, T]) -> T:
    value = default if fields.take(name) is None else fields.take(name)
    if not isinstance(value, str) or value not in known:
        raise fields.error(name, value, f"unknown; known: {', '.join(known)}")
    return known[value]


def _activation(fields: Fields) -> tuple[Activation, bool]:
    """NeMo fuses bias and GELU unless it is told not to, and the fused form is the tanh one."""
    activation, gated = _one_of(fields, "activation", "gelu", _ACTIVATIONS)
    fused = fields.flag("bias_activation_fusion", fields.flag("bias_gelu_fusion", True))
    tanh = fields.flag("openai_gelu")
    if activation == "gelu":
        return ("gelu_tanh" if fused or tanh else "gelu"), gated
    for name in ("openai_gelu", "onnx_safe"):
        fields.expect(name, False, None, why="puts GELU in the place of the activation")
    return activation, gated


def _rope(fields: Fields, head_dim: int, position: PositionKind) -> RopeSpec | None:
    share, base = fields.number("rotary_percentage", 1.0), fields.number("rotary_base", 10000.0)
    factor = fields.optional_number("seq_len_interpolation_factor")
    if position != "rope":
        return None
    if not 0 < share <= 1:
        raise fields.error("rotary_percentage", share, "must be above 0 and at most 1")
    return RopeSpec(
        kind="default" if factor is None else "linear",
        theta=base,
        rotary_dim=int(head_dim * share),
        factor=1.0 if factor is None else factor,
    )


def _window(fields: Fields) -> int | None:
    """Written as [tokens before, tokens after], or not at all."""
    window = fields.take("window_size")
    if window in (None, [-1, -1], [-1, 0]):
        return None
    pair = isinstance(window, list) and [type(size) for size in window] == [int, int]
    if not pair or window[1] != 0 or not 0 <= window[0] < LARGEST_SIZE:
        raise fields.error("window_size", window, "must be [tokens before, 0]")
    return int(window[0]) + 1


def family(index: Index) -> Family:
    """The table for the names and the number of parts that this checkpoint has."""
    core = is_core(index)
    parts = len(next(iter(index.values()))) if index else 1
    return Family(
        name="nemo",
        views=lambda spec: _views(spec, index, core, parts),
        prefixes=("model.module.language_model.", "model.language_model.", "model.module.", "model."),
        # The last pipeline stage keeps a tied head, a copy of the embedding, under either name.
        heads=("output_layer.weight", "word_embeddings.weight"),
        ignored=r".*(rotary_pos_emb\.inv_freq|_extra_state|core_attention\..*)",
    )


def _views(spec: ModelSpec, index: Index, core: bool, parts: int) -> Mapping[str, View]:
    layer = "decoder.layers.{i}" if core else "encoder.layers.{i}"
    attention = f"{layer}.self_attention"
    fused_norms = any(name.endswith("linear_qkv.layer_norm_weight") for name in index)
    return {
        "embed": view("embedding.word_embeddings"),
        "positions": view("embedding.position_embeddings"),
        "layers.{i}.attn_norm": _norm(f"{attention}.linear_qkv", fused_norms, f"{layer}.input_layernorm"),
        **_qkv(spec, f"{attention}.{'linear_qkv' if core else 'query_key_value'}"),
        "layers.{i}.attn.q_norm": view(f"{attention}.q_layernorm"),
        "layers.{i}.attn.k_norm": view(f"{attention}.k_layernorm"),
        "layers.{i}.attn.o": view(f"{attention}.{'linear_proj' if core else 'dense'}"),
        "layers.{i}.mlp_norm": _norm(
            f"{layer}.mlp.linear_fc1",
            fused_norms,
            f"{layer}.{'pre_mlp_layernorm' if core else 'post_attention_layernorm'}",
        ),
        **_mlp(spec, index, core, parts, f"{layer}.mlp"),
        "norm": view("decoder.final_layernorm" if core else "encoder.final_layernorm"),
        "head": view("embedding.word_embeddings" if spec.tied_embeddings else _own_head(index)),
    }


def _own_head(index: Index) -> str:
    """Older last stages call the head as the embedding is called, without the module around it."""
    leaf, own = "word_embeddings.weight", any("output_layer." in name for name in index)
    copied = any(name.endswith(leaf) and not name.endswith(f"embedding.{leaf}") for name in index)
    return "word_embeddings" if copied and not own else "output_layer"


def _norm(linear: str, fused: bool, own: str) -> View:
    return view(f"{linear}.layer_norm", joined="_") if fused else view(own)


def _qkv(spec: ModelSpec, source: str) -> Mapping[str, View]:
    """Group by group: the queries that share a key, the key, the value."""
    dim = spec.head_dim
    queries = spec.num_heads // spec.num_kv_heads * dim
    stride = queries + 2 * dim
    blocks = {"q": (0, queries), "k": (queries, dim), "v": (queries + dim, dim)}
    return {
        f"layers.{{i}}.attn.{name}": view(source, offset=offset, block=block, stride=stride)
        for name, (offset, block) in blocks.items()
    }


def _mlp(spec: ModelSpec, index: Index, core: bool, parts: int, prefix: str) -> Mapping[str, View]:
    """Where gate and up are one tensor, every part holds its share of the gate, then of up."""
    first, last = ("linear_fc1", "linear_fc2") if core else ("dense_h_to_4h", "dense_4h_to_h")
    down = {"layers.{i}.mlp.down": view(f"{prefix}.{last}")}
    if not spec.gated:
        return {"layers.{i}.mlp.up": view(f"{prefix}.{first}"), **down}
    if any("dense_h_to_4h_2." in name for name in index):
        gate, up = view(f"{prefix}.{first}"), view(f"{prefix}.{first}_2")
    else:
        share = spec.intermediate_size // parts
        gate, up = (
            view(f"{prefix}.{first}", offset=offset, block=share, stride=2 * share) for offset in (0, share)
        )
    return {"layers.{i}.mlp.gate": gate, "layers.{i}.mlp.up": up, **down}
