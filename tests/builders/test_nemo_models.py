"""What NeMo trains beside GPT-Next, each with a Transformers model that computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from transformers import (
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    MptForCausalLM,
    NemotronConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from builders.mapping import Mapping
from builders.sources.opened import Opened, open_source
from tests.builders.test_families import answers, check
from tests.convert_tools import convert_opened
from tests.nemo_writer import CORE, OLD, config_of, grouped, nemo_tensors, plain_gpt, write_nemo
from tests.oracle import gpt2, mpt, random_model

SIZES = {"vocab_size": 104, "num_hidden_layers": 4, "hidden_size": 48, "intermediate_size": 72}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
UNTIED = {**SIZES, **TOKENS, "tie_word_embeddings": False}
RMS = {"normalization": "rmsnorm", "layernorm_epsilon": 1e-6}
HALF = {"partial_rotary_factor": 0.5, "rope_theta": 5e4}


def opened_from(
    tmp_path: Path, config: dict[str, Any], tensors: dict[str, Tensor], prefix: str, **ranks: int
) -> Opened:
    folder = write_nemo(tmp_path / "model", config, tensors, prefix=prefix, **ranks)
    return open_source(folder, scratch=tmp_path / "scratch")


@pytest.mark.parametrize("core", [False, True], ids=["older names", "core names"])
@pytest.mark.parametrize(
    ("like", "activation", "fields"),
    [
        (LlamaConfig(**UNTIED, rms_norm_eps=1e-6), "fast-swiglu", RMS),
        (
            Qwen3Config(**UNTIED, head_dim=16),
            "fast-swiglu",
            {**RMS, "normalization": "RMSNorm", "kv_channels": 16, "qk_layernorm": True},
        ),
        (
            MistralConfig(**UNTIED, sliding_window=7, rms_norm_eps=1e-6),
            "swiglu",
            {**RMS, "window_size": [6, 0]},
        ),
        (
            NemotronConfig(
                **UNTIED, norm_eps=1e-5, rope_parameters={**HALF, "rope_type": "linear", "factor": 4.0}
            ),
            "squared-relu",
            {"seq_len_interpolation_factor": 4},
        ),
    ],
    ids=["rmsnorm", "head norms and size", "window", "interpolated rope"],
)
def test_variant(
    like: PreTrainedConfig, activation: str, fields: dict[str, Any], core: bool, tmp_path: Path
) -> None:
    model = random_model(like)
    tensors = nemo_tensors(model, core=core, two_tensors=activation == "swiglu" and not core)
    config = config_of(model, activation, **fields)
    opened = opened_from(tmp_path, config, tensors, CORE if core else OLD, tp=2)
    check(answers(model, opened), convert_opened(opened, Mapping(tp_size=2), tmp_path / "out"))


@pytest.mark.parametrize("prefix", [CORE, "model.module."])
def test_scaled_embedding_tied_across_stages(prefix: str, tmp_path: Path) -> None:
    """Gemma's norm weights are stored minus one, NeMo's are not; the last stage has its own embedding."""
    model = random_model(GemmaConfig(**SIZES, **TOKENS, head_dim=16))
    tensors = nemo_tensors(model, core=True)
    tensors = {name: value + 1 if "norm" in name else value for name, value in tensors.items()}
    fields = {**RMS, "kv_channels": 16, "apply_embedding_scaling": True, "bias_activation_fusion": True}
    config = config_of(model, "fast-geglu", **fields, share_embeddings_and_output_weights=True)
    opened = opened_from(tmp_path, config, tensors, prefix, tp=2, pp=2)
    check(answers(model, opened), convert_opened(opened, Mapping(pp_size=2), tmp_path / "out"))


def test_plain_gpt_tied_across_stages(tmp_path: Path) -> None:
    model = random_model(gpt2(vocab_size=104, n_layer=4))
    config, tensors = plain_gpt(model)  # type: ignore[arg-type]
    tensors["word_embeddings.weight"] = tensors["embedding.word_embeddings.weight"]
    opened = opened_from(tmp_path, config, tensors, OLD, pp=2)
    check(answers(model, opened), convert_opened(opened, Mapping(tp_size=2), tmp_path / "out"))


@pytest.mark.parametrize(
    ("theirs", "fields"),
    [
        ("gelu_new", {}),
        ("gelu_new", {"activation": None}),
        ("gelu_new", {"bias_activation_fusion": None}),
        ("gelu_new", {"bias_activation_fusion": True}),
        ("gelu", {"bias_activation_fusion": False}),
        ("gelu_new", {"bias_activation_fusion": False, "openai_gelu": True}),
        ("gelu_new", {"bias_gelu_fusion": True}),
        ("gelu", {"bias_gelu_fusion": False}),
        ("relu", {"activation": "relu"}),
    ],
    ids=str,
)
def test_activation_that_is_meant(theirs: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """NeMo fuses bias and GELU, in its tanh form, unless it is told not to."""
    model = random_model(gpt2(vocab_size=104, activation_function=theirs))
    config, tensors = plain_gpt(model)  # type: ignore[arg-type]
    del config["bias_activation_fusion"]
    folder = write_nemo(tmp_path / "model", config, tensors, prefix=OLD)
    (folder / "model_config.yaml").write_text(yaml.safe_dump({**config, **fields}))
    opened = open_source(folder, scratch=tmp_path)
    check(answers(model, opened), convert_opened(opened, Mapping(), tmp_path / "out"))


def test_scores_that_are_not_normalized(tmp_path: Path) -> None:
    model = random_model(gpt2(vocab_size=104, scale_attn_weights=False))
    config, tensors = plain_gpt(model)  # type: ignore[arg-type]
    opened = opened_from(tmp_path, {**config, "normalize_attention_scores": False}, tensors, OLD)
    check(answers(model, opened), convert_opened(opened, Mapping(), tmp_path / "out"))


@pytest.mark.parametrize("heads", [4, 6])
def test_alibi(heads: int, tmp_path: Path) -> None:
    model = random_model(mpt(vocab_size=104, n_heads=heads))
    sizes = {"num_layers": 3, "hidden_size": 48, "num_attention_heads": heads, "ffn_hidden_size": 192}
    config = {**plain_gpt(random_model(gpt2()))[0], **sizes, "bias": False}  # type: ignore[arg-type]
    config |= {"position_embedding_type": "alibi", "bias_activation_fusion": False}
    opened = opened_from(tmp_path, config, mpt_tensors(model, heads), OLD, tp=2)
    check(answers(model, opened), convert_opened(opened, Mapping(tp_size=2), tmp_path / "out"))


def mpt_tensors(model: MptForCausalLM, heads: int) -> dict[str, Tensor]:
    """Under the names of NeMo's plain GPT, whose norms always have a bias."""
    state = {name.removeprefix("transformer."): value for name, value in model.state_dict().items()}
    found = {
        "embedding.word_embeddings.weight": state["wte.weight"],
        "encoder.final_layernorm.weight": state["norm_f.weight"],
        "encoder.final_layernorm.bias": torch.zeros(48),
    }
    names = {
        "input_layernorm": "norm_1",
        "post_attention_layernorm": "norm_2",
        "self_attention.dense": "attn.out_proj",
        "mlp.dense_h_to_4h": "ffn.up_proj",
        "mlp.dense_4h_to_h": "ffn.down_proj",
    }
    for layer in range(3):
        ours = f"encoder.layers.{layer}"
        own = {ours: state[f"blocks.{layer}.{theirs}.weight"] for ours, theirs in names.items()}
        found |= {f"{ours}.{name}.weight": value for name, value in own.items()}
        found |= {f"{ours}.{name}.bias": torch.zeros(48) for name in names if "layernorm" in name}
        fused = list(state[f"blocks.{layer}.attn.Wqkv.weight"].chunk(3))
        found[f"{ours}.self_attention.query_key_value.weight"] = grouped(fused, heads)
    return found
