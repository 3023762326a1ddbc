"""Configurations of the older TensorRT-LLM checkpoints describe the models that Transformers' do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.errors import UserError
from builders.families import from_transformers
from builders.families.tensorrt_llm import read_config
from builders.mapping import Mapping
from builders.params import params
from builders.sources.opened import open_source
from builders.spec import ModelSpec

ROOT = Path(__file__).parent.parent.parent
PUBLISHED = Path(__file__).parent.parent / "configs"
NONE = {"quantization": {"quant_algo": None, "kv_cache_quant_algo": None, "group_size": 128}}
ONE = {"mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1}}


def config(name: str, **changes: Any) -> dict[str, Any]:
    """GPT-2's, or another's with these changes."""
    values = {
        "architecture": name,
        "dtype": "float16",
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_size": 768,
        "vocab_size": 50257,
        "max_position_embeddings": 1024,
        "norm_epsilon": 1e-5,
        "logits_dtype": "float32",
        **NONE,
        **ONE,
    }
    return {**values, **changes}


def llama(width: int, **changes: Any) -> dict[str, Any]:
    sizes = {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "vocab_size": 32000}
    rest = {"hidden_act": "silu", "position_embedding_type": "rope_gpt_neox", "intermediate_size": width}
    return config("LlamaForCausalLM", **{**sizes, **rest, **changes})


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "type": "llama3"}
SAME = {
    "llama-7b": llama(11008, max_position_embeddings=2048, norm_epsilon=1e-6),
    "llama-3.1-8b": llama(
        14336,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=131072,
        rotary_base=500000.0,
        rotary_scaling={**LLAMA3, "original_max_position_embeddings": 8192},
    ),
    "mixtral-8x7b": llama(
        14336,
        num_key_value_heads=8,
        max_position_embeddings=32768,
        rotary_base=1000000.0,
        hidden_act="swiglu",
        moe={"num_experts": 8, "top_k": 2, "normalization_mode": 1},
    ),
    "mpt-7b": config(
        "MPTForCausalLM",
        num_hidden_layers=32,
        num_attention_heads=32,
        hidden_size=4096,
        vocab_size=50432,
        max_position_embeddings=2048,
        position_embedding_type="alibi",
        share_embedding_table=True,
    ),
    "dbrx": config(
        "DbrxForCausalLM",
        num_hidden_layers=40,
        num_attention_heads=48,
        num_key_value_heads=8,
        hidden_size=6144,
        intermediate_size=10752,
        vocab_size=100352,
        max_position_embeddings=32768,
        position_embedding_type="rope_gpt_neox",
        hidden_act="swiglu",
        rotary_base=500000.0,
        clip_qkv=8,
        moe={"num_experts": 16, "top_k": 4, "normalization_mode": 1},
    ),
}


def spec(values: dict[str, Any]) -> ModelSpec:
    return read_config(values, frozenset())[0]


@pytest.mark.parametrize("name", SAME)
def test_same_model_as_the_published_configuration(name: str) -> None:
    _family, theirs = from_transformers(json.loads((PUBLISHED / f"{name}.json").read_text()))
    ours = spec(SAME[name])
    assert replace(ours, family="", activation="gelu") == replace(theirs, family="", activation="gelu")
    assert ours.activation.startswith(theirs.activation)


def test_same_model_as_gpt2() -> None:
    _family, theirs = from_transformers({"model_type": "gpt2"})
    ours = spec(config("GPTForCausalLM", hidden_act="gelu", share_embedding_table=True))
    assert replace(ours, family="gpt2") == theirs


@pytest.mark.parametrize(("name", "billions"), [("gpt_175b", 175), ("gpt_530b", 530)])
def test_shipped_configurations_have_the_size_in_their_name(name: str, billions: int) -> None:
    opened = open_source(ROOT / f"builders/configs/{name}.json", scratch=Path("x"), config_only=True)
    sizes = [param.shape for param in params(opened.spec) if param.name != "head.weight"]
    assert sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in sizes) / 1e9 == pytest.approx(
        billions, rel=0.01
    )
    assert opened.layout == Mapping() and opened.dtype == "float16"


def test_layout_and_dtype_are_the_files() -> None:
    sizes = {"world_size": 8, "tp_size": 4, "pp_size": 2, "gpus_per_node": 8}
    values = config("GPTForCausalLM", mapping=sizes, dtype="bfloat16", use_parallel_embedding=True)
    _spec, dtype, layout = read_config(values, frozenset())
    assert (dtype, layout) == ("bfloat16", Mapping(tp_size=4, pp_size=2, embedding_split="vocab"))


def test_rotary_of_a_part_of_the_head() -> None:
    values = config("GPTForCausalLM", position_embedding_type="rope_gpt_neox", rotary_pct=0.5)
    rope = spec(values).rope
    assert rope is not None and rope.rotary_dim == 32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "BaichuanForCausalLM"}, "architecture='BaichuanForCausalLM': unknown; known: GPT"),
        ({"flux_capacitor": 1}, "flux_capacitor=1: not understood"),
        ({"mapping": {"tp_size": 2, "speed": 88}}, "mapping.speed=88: not understood"),
        ({"mapping": {"world_size": 8, "tp_size": 2}}, "mapping.world_size=8: must be tp_size=2 x pp_size=1"),
        ({"mapping": {"cp_size": 2}}, "mapping.cp_size=2: context parallelism"),
        ({"quantization": {"quant_algo": "FP8"}}, "quantization.quant_algo='FP8': quantized weights"),
        ({"dtype": "float8"}, "dtype='float8': known: float32"),
        ({"hidden_act": "softsign"}, "hidden_act='softsign': unknown activation"),
        ({"position_embedding_type": "rope_gptj"}, "position_embedding_type='rope_gptj': known"),
        ({"hidden_size": "many"}, "hidden_size='many': must be a whole number"),
        ({"q_scaling": 0}, "q_scaling=0.0: must be above 0"),
        ({"rotary_pct": 2}, "rotary_pct=2.0: must be above 0 and at most 1.0"),
        ({"inner_layernorm": True}, "inner_layernorm=True: only False"),
        ({"rotary_scaling": [1]}, r"rotary_scaling=\[1\]: must be an object"),
        ({"moe": {"num_experts": 4, "top_k": "two"}}, "moe.top_k='two': must be a whole"),
        ({"moe": {"num_experts": 4, "top_k": 9}}, "top_k=9: must be between"),
    ],
)
def test_what_is_not_understood_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        spec(config("GPTForCausalLM", **changes))


def test_a_field_known_not_to_matter() -> None:
    values = config("GPTForCausalLM", flux_capacitor=1)
    assert read_config(values, frozenset({"flux_capacitor"}))[0] == spec(config("GPTForCausalLM"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats(allow_nan=True) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(SAME)), st.data())
def test_any_value_is_understood_or_refused(name: str, data: st.DataObject) -> None:
    values = SAME[name]
    extra = ["rotary_scaling", "moe", "q_scaling", "bias", "head_size", "embedding_scale", "kv_dtype"]
    extra += ["position_embedding_type", "rotary_pct", "embedding_sharding_dim", "moe_top_k"]
    field = data.draw(st.sampled_from([*values, *extra]))
    try:
        found, _dtype, layout = read_config({**values, field: data.draw(JSON)}, frozenset())
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert layout.world_size >= 1 and found.num_layers >= 1
