"""NeMo archives written from Transformers' models: older names or Megatron-core's, any number of ranks."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedModel

OLD, CORE = "model.language_model.", "model."

GPT_2B_001 = {
    "micro_batch_size": 4, "global_batch_size": 256, "tensor_model_parallel_size": 2,
    "pipeline_model_parallel_size": 1, "virtual_pipeline_model_parallel_size": None,
    "encoder_seq_length": 64, "max_position_embeddings": 64, "init_method_std": 0.014,
    "use_scaled_init_method": True, "hidden_dropout": 0.0, "attention_dropout": 0.0, "ffn_dropout": 0.0,
    "kv_channels": None, "apply_query_key_layer_scaling": True, "layernorm_epsilon": 1e-5,
    "do_layer_norm_weight_decay": False, "make_vocab_size_divisible_by": 128, "pre_process": True,
    "post_process": True, "persist_layer_norm": True, "headscale": False, "transformer_block_type": "pre_ln",
    "openai_gelu": False, "normalize_attention_scores": True, "attention_type": "multihead",
    "native_amp_init_scale": 4294967296, "native_amp_growth_interval": 1000, "hysteresis": 2,
    "fp32_residual_connection": False, "fp16_lm_cross_entropy": False, "megatron_amp_O2": True,
    "grad_allreduce_chunk_size_mb": 125, "grad_div_ar_fusion": True, "gradient_accumulation_fusion": False,
    "bias_activation_fusion": False, "bias_dropout_add_fusion": False, "masked_softmax_fusion": True,
    "seed": 1234, "resume_from_checkpoint": None, "use_cpu_initialization": False,
    "onnx_safe": False,
    "apex_transformer_log_level": 30, "gradient_as_bucket_view": True, "sync_batch_comm": False,
    "activations_checkpoint_granularity": None, "activations_checkpoint_method": None,
    "activations_checkpoint_num_layers": None, "sequence_parallel": False, "transformer_engine": False,
    "fp8": False, "fp8_margin": 0,
    "optim": {"name": "distributed_fused_adam", "lr": 2e-4}, "precision": "bf16",
    "data": {"data_impl": "mmap", "seq_length": 64}, "nemo_version": "1.19.0",
    "target": "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel",
}  # fmt: skip
"""The published configuration of GPT-2B-001 but for its sizes."""


def config_of(model: PreTrainedModel, activation: str, **changes: Any) -> dict[str, Any]:
    """model_config.yaml of a GPT-Next, or of what NeMo trains with its names."""
    config = model.config
    sizes = {
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "num_query_groups": config.num_key_value_heads,
        "normalization": "layernorm1p",
        "bias": getattr(config, "attention_bias", False),
        "activation": activation,
        "position_embedding_type": "rope",
        "rotary_percentage": config.rope_parameters.get("partial_rotary_factor", 1.0),
        "rotary_base": config.rope_parameters["rope_theta"],
        "share_embeddings_and_output_weights": False,
    }
    return {**GPT_2B_001, **sizes, **changes}


def nemo_tensors(model: PreTrainedModel, *, core: bool, two_tensors: bool = False) -> dict[str, Tensor]:
    """A GPT-Next's tensors under NeMo's names, whole."""
    state, config = model.state_dict(), model.config
    found = {
        "embedding.word_embeddings.weight": state["model.embed_tokens.weight"],
        "output_layer.weight": state["lm_head.weight"],
    }
    top = "decoder" if core else "encoder"
    for leaf in ("weight", "bias"):
        if f"model.norm.{leaf}" in state:
            found[f"{top}.final_layernorm.{leaf}"] = state[f"model.norm.{leaf}"]
    for layer in range(config.num_hidden_layers):
        own = {name.split(".", 3)[3]: value for name, value in state.items() if f".layers.{layer}." in name}
        for name, value in _layer(own, config, core=core, two_tensors=two_tensors).items():
            found[f"{top}.layers.{layer}.{name}"] = value
    return found


def _layer(own: Mapping[str, Tensor], config: Any, *, core: bool, two_tensors: bool) -> dict[str, Tensor]:
    qkv, out = ("linear_qkv", "linear_proj") if core else ("query_key_value", "dense")
    up, down = ("linear_fc1", "linear_fc2") if core else ("dense_h_to_4h", "dense_4h_to_h")
    found = {}
    for leaf in ("weight", "bias"):
        if f"self_attn.q_proj.{leaf}" in own:
            parts = [own[f"self_attn.{name}_proj.{leaf}"] for name in "qkv"]
            found[f"self_attention.{qkv}.{leaf}"] = grouped(parts, config.num_key_value_heads)
            found[f"self_attention.{out}.{leaf}"] = own[f"self_attn.o_proj.{leaf}"]
        if f"mlp.down_proj.{leaf}" in own:
            found[f"mlp.{down}.{leaf}"] = own[f"mlp.down_proj.{leaf}"]
            first = [own[name] for n in ("gate", "up") if (name := f"mlp.{n}_proj.{leaf}") in own]
            if two_tensors:
                found[f"mlp.{up}.{leaf}"], found[f"mlp.{up}_2.{leaf}"] = first
            else:
                found[f"mlp.{up}.{leaf}"] = torch.cat(first)
        for name in "qk":
            if f"self_attn.{name}_norm.{leaf}" in own:
                found[f"self_attention.{name}_layernorm.{leaf}"] = own[f"self_attn.{name}_norm.{leaf}"]
        norms = [own.get(f"{name}_layernorm.{leaf}") for name in ("input", "post_attention")]
        names = _norm_names(core, qkv, up, leaf)
        found |= {name: norm for name, norm in zip(names, norms, strict=True) if norm is not None}
    return found


def _norm_names(core: bool, qkv: str, up: str, leaf: str) -> list[str]:
    if core:
        return [f"self_attention.{qkv}.layer_norm_{leaf}", f"mlp.{up}.layer_norm_{leaf}"]
    return [f"input_layernorm.{leaf}", f"post_attention_layernorm.{leaf}"]


def grouped(parts: list[Tensor], groups: int) -> Tensor:
    """Group by group: its queries, its key, its value."""
    split = [part.unflatten(0, (groups, -1)) for part in parts]
    return torch.cat(split, dim=1).flatten(0, 1)


def plain_gpt(model: GPT2LMHeadModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A GPT-2 as NeMo's plain GPT: learned positions, tied output, fused q, k, v head by head."""
    state, config = model.state_dict(), model.config
    found = {
        "embedding.word_embeddings.weight": state["transformer.wte.weight"],
        "embedding.position_embeddings.weight": state["transformer.wpe.weight"],
    }
    names = {
        "ln_1": "input_layernorm",
        "ln_2": "post_attention_layernorm",
        "attn.c_attn": "self_attention.query_key_value",
        "attn.c_proj": "self_attention.dense",
        "mlp.c_fc": "mlp.dense_h_to_4h",
        "mlp.c_proj": "mlp.dense_4h_to_h",
    }
    for leaf in ("weight", "bias"):
        found[f"encoder.final_layernorm.{leaf}"] = state[f"transformer.ln_f.{leaf}"]
        for layer in range(config.n_layer):
            for theirs, ours in names.items():
                value = state[f"transformer.h.{layer}.{theirs}.{leaf}"]
                value = value.T if value.dim() == 2 else value
                if theirs == "attn.c_attn":
                    value = grouped(list(value.chunk(3)), config.n_head)
                found[f"encoder.layers.{layer}.{ours}.{leaf}"] = value
    sizes = {
        "num_layers": config.n_layer,
        "hidden_size": config.n_embd,
        "num_attention_heads": config.n_head,
        "ffn_hidden_size": 4 * config.n_embd,
        "normalization": "layernorm",
        "bias": True,
        "activation": "gelu",
        "bias_activation_fusion": True,
        "position_embedding_type": "learned_absolute",
        "share_embeddings_and_output_weights": True,
    }
    return {**GPT_2B_001, **sizes}, found


def write_nemo(
    folder: Path,
    config: dict[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    prefix: str,
    tp: int = 1,
    pp: int = 1,
) -> Path:
    """An unpacked checkpoint: one file for every rank that would have trained it."""
    folder.mkdir()
    (folder / "model_config.yaml").write_text(yaml.safe_dump(config))
    fused = config["activation"].endswith("glu") and not any("h_to_4h_2." in name for name in tensors)
    per_stage = config["num_layers"] // pp
    for stage in range(pp):
        mine = {
            f"{prefix}{local}": tensor
            for name, tensor in tensors.items()
            if (local := _local_name(name, stage, pp, per_stage)) is not None
        }
        for rank in range(tp):
            content = {name: _rank_part(name, tensor, rank, tp, fused) for name, tensor in mine.items()}
            file = folder / _rank_folder(rank, stage, tp, pp) / "model_weights.ckpt"
            file.parent.mkdir(exist_ok=True)
            torch.save(content, file)
    return folder


def _rank_folder(rank: int, stage: int, tp: int, pp: int) -> str:
    if pp > 1:
        return f"tp_rank_{rank:02d}_pp_rank_{stage:03d}"
    return f"mp_rank_{rank:02d}" if tp > 1 else "."


def _local_name(name: str, stage: int, pp: int, per_stage: int) -> str | None:
    if match := re.search(r"\.layers\.(\d+)\.", name):
        layer = int(match[1]) - stage * per_stage
        return re.sub(r"\.layers\.\d+\.", f".layers.{layer}.", name) if 0 <= layer < per_stage else None
    first = name.startswith("embedding.")
    return name if stage == (0 if first else pp - 1) else None


def _rank_part(name: str, tensor: Tensor, rank: int, tp: int, fused: bool) -> Tensor:
    if tensor.dim() == 2 and (
        "dense." in name or "4h_to_h" in name or "linear_proj" in name or "fc2" in name
    ):
        return tensor.chunk(tp, dim=1)[rank].clone()
    column = ("query_key_value", "h_to_4h", "linear_qkv.weight", "linear_qkv.bias", "fc1.weight", "fc1.bias",
              "word_embeddings", "output_layer")  # fmt: skip
    if "4h_to_h" in name or not any(part in name for part in column):
        return tensor.clone()
    if fused and ("dense_h_to_4h." in name or "fc1." in name):
        return torch.cat([half.chunk(tp)[rank] for half in tensor.chunk(2)])
    return tensor.chunk(tp)[rank].clone()


def pack(folder: Path, archive: Path, mode: str = "w") -> Path:
    """A tar of the folder's files."""
    with tarfile.open(archive, mode) as tar:  # type: ignore[call-overload]
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                tar.add(file, arcname=f"./{file.relative_to(folder)}")
    return archive


def pack_members(archive: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    """A tar of exactly these members, however hostile."""
    with tarfile.open(archive, "w") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return archive
