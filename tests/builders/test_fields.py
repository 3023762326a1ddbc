"""A configuration that is not understood is one line that names the field, never a silent default."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from builders.errors import ConfigError
from builders.families import from_transformers
from builders.families.fields import Fields
from builders.sources.hf import open_folder
from builders.spec import ModelSpec

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "vocab_size": 101,
}
GPT = {"n_embd": 48, "n_head": 4, "n_layer": 3, "vocab_size": 101, "n_positions": 64}
MOSAIC = {"d_model": 48, "n_heads": 4, "n_layers": 3, "vocab_size": 101, "max_seq_len": 64}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "mistral": SIZES,
    "starcoder2": SIZES,
    "mixtral": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "mpt": MOSAIC,
    "dbrx": {
        **MOSAIC,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 5e5},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
}
NOT_A_SIZE = [0, -1, 2.5, "four", [4], math.nan, math.inf]
NOT_A_NUMBER = [math.nan, math.inf, "one", [1.0]]


def understand(model_type: str, **changes: Any) -> ModelSpec:
    return from_transformers({"model_type": model_type, **CONFIGS[model_type], **changes})[1]


def refusal(model_type: str, **changes: Any) -> str:
    """The complaint about a configuration, which is always one line that fits on a screen."""
    with pytest.raises(ConfigError) as caught:
        understand(model_type, **changes)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 400
    return message


@pytest.mark.parametrize("model_type", CONFIGS)
def test_the_configurations_here_are_understood_as_they_are(model_type: str) -> None:
    spec = understand(model_type)
    assert (spec.hidden_size, spec.num_layers, spec.num_heads, spec.vocab_size) == (48, 3, 4, 101)


@pytest.mark.parametrize("value", NOT_A_SIZE, ids=repr)
@pytest.mark.parametrize("model_type", CONFIGS)
def test_sizes_are_whole_numbers_of_at_least_one(model_type: str, value: object) -> None:
    for name in SIZES | GPT | MOSAIC:
        if name in CONFIGS[model_type]:
            assert name in refusal(model_type, **{name: value})


@pytest.mark.parametrize("value", NOT_A_SIZE, ids=repr)
@pytest.mark.parametrize(
    ("model_type", "name"),
    [("llama", "head_dim"), ("llama", "sliding_window"), ("mistral", "sliding_window"), ("gpt2", "n_inner")],
)
def test_sizes_that_may_be_left_out_are_checked_where_given(
    model_type: str, name: str, value: object
) -> None:
    assert name in refusal(model_type, **{name: value})


@pytest.mark.parametrize("value", [*NOT_A_NUMBER, -1.0], ids=repr)
@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("llama", "rms_norm_eps"),
        ("starcoder2", "norm_epsilon"),
        ("gpt2", "layer_norm_epsilon"),
        ("mpt", "norm_eps"),
    ],
)
def test_epsilons_are_finite_and_positive(model_type: str, name: str, value: object) -> None:
    assert "eps" in refusal(model_type, **{name: value})


@pytest.mark.parametrize("model_type", CONFIGS)
def test_unknown_field_is_named_with_the_remedy(model_type: str) -> None:
    message = refusal(model_type, shiny_new_thing=3)
    assert "shiny_new_thing=3" in message and "--ignore_config_field shiny_new_thing" in message
    values = {"model_type": model_type, **CONFIGS[model_type], "shiny_new_thing": 3}
    assert from_transformers(values, ["shiny_new_thing"])[1] == understand(model_type)
    assert understand(model_type, shiny_new_thing=None) == understand(model_type)


@pytest.mark.parametrize("name", ["n_wheels", "num_wheels", "wheel_size", "wheel_dim"])
def test_ignored_field_may_be_zero(name: str) -> None:
    """Unknown sizes are refused before a configuration class divides by them, unless they are ignored."""
    assert f"{name}=0: must be at least 1" in refusal("gpt2", **{name: 0})
    values = {"model_type": "gpt2", **GPT, name: 0}
    assert from_transformers(values, [name])[1] == understand("gpt2")


@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_size_that_matters_cannot_be_ignored_away(model_type: str) -> None:
    for name in SIZES | GPT | MOSAIC:
        if name in CONFIGS[model_type]:
            values = {"model_type": model_type, **CONFIGS[model_type], name: 0}
            with pytest.raises(ConfigError):
                from_transformers(values, [name])


@pytest.mark.parametrize("value", [2**31, 10**400, 16**5000], ids=["2^31", "10^400", "16^5000"])
def test_whole_numbers_have_a_limit(value: int) -> None:
    fields = Fields({"wide": value, "widest": 2**31 - 1, "number": 10**400})
    with pytest.raises(ConfigError, match=r"^config field wide=.*must be at most 2147483647$"):
        fields.size("wide")
    assert fields.size("widest") == 2**31 - 1
    with pytest.raises(ConfigError, match=r"^config field number=1000.*must be a finite number$"):
        fields.number("number")
    for name in SIZES:
        refusal("llama", **{name: 10**400})


@pytest.mark.parametrize("count", [10_001, 10**9])
@pytest.mark.parametrize("model_type", CONFIGS)
def test_layers_have_a_limit(model_type: str, count: int) -> None:
    """What would be gone through one by one must end; even where the field is vouched for."""
    (name,) = {"num_hidden_layers", "n_layer", "n_layers"} & CONFIGS[model_type].keys()
    with pytest.raises(ConfigError, match=rf"^config field {name}={count}: must be at most 10000$"):
        from_transformers({"model_type": model_type, **CONFIGS[model_type], name: count}, [name])
    assert understand(model_type, **{name: 10_000 if model_type not in ("mixtral", "dbrx") else 900})


def test_experts_have_a_limit() -> None:
    assert "num_experts=10001: must be at most 10000" in refusal("mixtral", num_local_experts=10_001)
    ffn = {"ffn_config": {**CONFIGS["dbrx"]["ffn_config"], "moe_num_experts": 10**9}}
    assert "num_experts=1000000000: must be at most 10000" in refusal("dbrx", **ffn)
    message = refusal("mixtral", num_local_experts=10_000, num_hidden_layers=21)
    assert "num_layers=21 x num_experts=210000: must be at most 200000" in message


def test_fields_of_the_first_gpt2_do_not_matter() -> None:
    fields = {"n_special": 0, "predict_special_tokens": True, "output_past": True, "_num_labels": 1}
    assert understand("gpt2", **fields) == understand("gpt2")


ROTARY_KINDS = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32},
]


@pytest.mark.parametrize("kind", ROTARY_KINDS, ids=lambda kind: kind["rope_type"])
@pytest.mark.parametrize("field", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "mixtral", "starcoder2"])
def test_unknown_rotary_parameter(
    model_type: str, field: str, kind: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    """It is named as it was written, the remedy works, and nothing else is said on the screen."""
    plain = {"rope_theta": 1e4, **kind}
    message = refusal(model_type, **{field: {**plain, "novel": 3}})
    remedy = f"--ignore_config_field {field}.novel"
    assert f"config field {field}.novel=3: not understood" in message and message.endswith(remedy)
    values = {"model_type": model_type, **CONFIGS[model_type], field: {**plain, "novel": 3}}
    assert from_transformers(values, [f"{field}.novel"])[1] == understand(model_type, **{field: plain})
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("model_type", CONFIGS)
def test_layer_types_that_say_what_the_model_is(model_type: str, capfd: pytest.CaptureFixture[str]) -> None:
    window = "sliding_window" in (spec := understand(model_type).to_json()) and spec["sliding_window"]
    same, other = ["full_attention", "sliding_attention"][:: -1 if window else 1]
    assert understand(model_type, layer_types=[same] * 3) == understand(model_type)
    for types in ([other] * 3, [same, other, same], [same] * 2, [], "full_attention", same):
        assert "layer_types" in refusal(model_type, layer_types=types)
    assert capfd.readouterr() == ("", "")


def test_layer_types_with_a_window_and_without() -> None:
    for model_type in ("mistral", "mixtral", "starcoder2"):
        for window, kind in ((None, "full_attention"), (7, "sliding_attention")):
            fields = {"sliding_window": window}
            spec = understand(model_type, **fields, layer_types=[kind] * 3)
            assert spec.sliding_window == window


def test_window_of_a_llama() -> None:
    """Transformers' LLaMA does not have one, so it is not taken silently, nor left out silently."""
    message = refusal("llama", sliding_window=5)
    assert "sliding_window=5" in message and message.endswith("--ignore_config_field sliding_window")
    values = {"model_type": "llama", **SIZES, "sliding_window": 5}
    assert from_transformers(values, ["sliding_window"])[1] == understand("llama")
    assert understand("llama", sliding_window=None) == understand("llama")


def test_unknown_field_inside_a_field_is_named_in_full() -> None:
    assert "attn_config.novel=1" in refusal("mpt", attn_config={"novel": 1})
    assert "ffn_config.novel=1" in refusal("dbrx", ffn_config={**CONFIGS["dbrx"]["ffn_config"], "novel": 1})


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        *((model_type, "hidden_act") for model_type in ("llama", "mistral", "starcoder2", "mixtral")),
        ("gpt2", "activation_function"),
        ("gpt_bigcode", "activation_function"),
    ],
)
@pytest.mark.parametrize("value", ["tanh", "laplace", "", 3, None, ["silu"]], ids=repr)
def test_unknown_activation(model_type: str, name: str, value: object) -> None:
    assert name in refusal(model_type, **{name: value})


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "su", "factor": 2.0},
        {"rope_type": "proportional", "factor": 2.0},
        {"rope_type": ["linear"], "factor": 2.0},
        {"rope_type": None},
        {"rope_type": "linear"},
        {"rope_type": "linear", "factor": 0},
        {"rope_type": "linear", "factor": -1},
        {"rope_type": "linear", "factor": "two"},
        {"rope_type": "linear", "factor": math.nan},
        {"rope_type": "linear", "factor": 2.0, "novel": 3},
        {"rope_type": "default", "rope_theta": 0},
        {"rope_type": "default", "rope_theta": "big"},
        {"rope_type": "default", "partial_rotary_factor": 0.5},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": -4},
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": -1},
        {"rope_type": "yarn", "factor": 4.0, "mscale": "x", "mscale_all_dim": 1.0},
        {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": -1.0},
        {"rope_type": "yarn", "factor": 10**400},
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0},
        {"rope_type": "yarn", "factor": 4.0, "truncate": "no"},
        {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1},
        {"rope_type": "longrope", "factor": 4.0},
        {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]},
        {"rope_type": "longrope", "short_factor": [0.0] * 6, "long_factor": [1.0] * 6},
        {"rope_type": "longrope", "short_factor": ["x"] * 6, "long_factor": [1.0] * 6},
        {"rope_type": "llama3", "factor": 8.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
        "linear",
        [1],
    ],
    ids=repr,
)
@pytest.mark.parametrize("model_type", ["llama", "mixtral", "starcoder2"])
def test_rotary_parameters_that_make_no_sense(model_type: str, parameters: object) -> None:
    if isinstance(parameters, dict):
        parameters = {"rope_theta": 1e4, **parameters}
    assert "rope" in refusal(model_type, head_dim=12, rope_parameters=parameters)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rope_theta": 5e5}, {"rope_type": "default", "rope_theta": 5e5}),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0},
        ),
        ({"rope_scaling": None}, {"rope_type": "default"}),
    ],
    ids=["theta", "linear", "none"],
)
def test_older_and_newer_rotary_fields_mean_the_same(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert understand("llama", **old) == understand("llama", rope_parameters=new)


@pytest.mark.parametrize(
    ("model_type", "changes", "named"),
    [
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config='gptq'"),
        ("llama", {"quantization_config": "awq"}, "quantization_config='awq'"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True"),
        ("gpt_bigcode", {"add_cross_attention": True}, "add_cross_attention=True"),
        ("llama", {"is_encoder_decoder": True}, "is_encoder_decoder=True"),
        ("llama", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("llama", {"num_key_value_heads": 3}, "num_kv_heads=3"),
        ("llama", {"head_dim": 7}, "head_dim"),
        ("mistral", {"attention_bias": "yes"}, "attention_bias='yes'"),
        ("llama", {"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ("gpt2", {"n_head": 7}, "n_head=7"),
        ("gpt2", {"attention_head_type": "octopus"}, "attention_head_type='octopus'"),
        ("starcoder2", {"mlp_type": "gated"}, "mlp_type='gated'"),
        ("starcoder2", {"norm_type": "rms_norm"}, "norm_type='rms_norm'"),
        ("mixtral", {"num_experts_per_tok": 5}, "top_k=5"),
        ("dbrx", {"attn_config": {"kv_n_heads": 3}}, "num_kv_heads=3"),
        ("dbrx", {"attn_config": "wide"}, "attn_config"),
        ("dbrx", {"ffn_config": {"ffn_act_fn": {"name": "tanh"}}}, "ffn_config.ffn_act_fn"),
        (
            "dbrx",
            {"ffn_config": {"ffn_act_fn": {"name": "gelu", "approximate": "tanh"}}},
            "ffn_config.ffn_act_fn",
        ),
        ("dbrx", {"ffn_config": {"moe_normalize_expert_weights": 2}}, "moe_normalize_expert_weights=2"),
        ("mpt", {"attn_config": {"attn_type": "linear"}}, "attn_config.attn_type='linear'"),
        ("mpt", {"attn_config": {"attn_type": "grouped_query_attention"}}, "attn_config.kv_n_heads"),
        ("mpt", {"attn_config": {"kv_n_heads": 2}}, "attn_config.kv_n_heads=2"),
        ("mpt", {"attn_config": {"prefix_lm": True}}, "attn_config.prefix_lm=True"),
        ("mpt", {"attn_config": {"rope": True}}, "attn_config.rope=True"),
        ("mpt", {"attn_config": {"fused_qkv": False}}, "attn_config.fused_qkv=False"),
        ("mpt", {"attn_config": {"qk_ln": True, "qk_gn": True}}, "attn_config.qk_gn=True"),
        ("mpt", {"attn_config": {"sliding_window_size": -5}}, "attn_config.sliding_window_size=-5"),
        ("mpt", {"attn_config": {"clip_qkv": math.nan}}, "attn_config.clip_qkv=nan"),
        ("mpt", {"attn_config": {"clip_qkv": -1}}, "clip_qkv=-1"),
        ("mpt", {"ffn_config": "mptmlp"}, "ffn_config='mptmlp'"),
        ("mpt", {"ffn_config": {"ffn_type": "mptglu"}}, "ffn_config.ffn_type='mptglu'"),
        ("mpt", {"ffn_config": {"ffn_hidden_size": 2.5}}, "ffn_config.ffn_hidden_size=2.5"),
        ("mpt", {"expansion_ratio": 0}, "expansion_ratio=0"),
        ("mpt", {"expansion_ratio": "4"}, "expansion_ratio='4'"),
        ("mpt", {"logit_scale": "huge"}, "logit_scale='huge'"),
        ("mpt", {"norm_type": "batchnorm"}, "norm_type='batchnorm'"),
        ("mpt", {"residual_modification": "layer"}, "residual_modification='layer'"),
    ],
    ids=repr,
)
def test_what_the_decoder_does_not_do(model_type: str, changes: dict[str, Any], named: str) -> None:
    assert named in refusal(model_type, **changes)


@pytest.mark.parametrize("model_type", [None, "", "bert", "x\ny", ["llama"], 3], ids=repr)
def test_unknown_family(model_type: object) -> None:
    with pytest.raises(ConfigError, match=r"^config field model_type=.*known: gpt2, gpt_bigcode") as caught:
        from_transformers({"model_type": model_type, **SIZES})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["NaN", "float8", 3, ["float32"]], ids=repr)
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_unknown_dtype(name: str, dtype: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES, name: dtype}))
    with pytest.raises(ConfigError, match=r"^config field dtype=.*known: float32") as caught:
        open_folder(tmp_path, config_only=True)
    assert "\n" not in str(caught.value)


def test_names_and_values_cannot_break_the_line() -> None:
    assert r"a\nb" in refusal("llama", **{"a\nb": 1})
    assert "novel='yyy" in refusal("llama", novel="y" * 5000)


def test_whole_numbers_stand_for_floats() -> None:
    """Transformers' classes are strict about 8 and 8.0; JSON is not."""
    attention = {"clip_qkv": 8, "softmax_scale": 1, "attn_pdrop": 0.0}
    spec = understand("mpt", attn_config=attention, logit_scale=2, resid_pdrop=0)
    assert (spec.clip_qkv, spec.attention_scale, spec.logit_scale) == (8.0, 1.0, 2.0)
    assert understand("llama", rms_norm_eps=1).norm_eps == 1.0


def test_settings_of_generation_do_not_matter() -> None:
    """Folders written by older versions repeat them all in config.json."""
    settings = {"max_length": 20, "no_repeat_ngram_size": 0, "top_p": 1.0, "num_labels": 0, "top_k": 50}
    assert understand("llama", **settings) == understand("llama")


def test_a_field_that_was_read_is_not_complained_about() -> None:
    fields = Fields({"read": 1, "unread": 2, "empty": None})
    assert fields.take("read") == 1
    with pytest.raises(ConfigError, match="unread=2"):
        fields.check_all_read(())
    fields.check_all_read({"unread"})
