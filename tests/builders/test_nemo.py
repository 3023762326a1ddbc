"""NeMo checkpoints, written from known models, give those models' logits and tokens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor, nn
from transformers import NemotronConfig, NemotronForCausalLM

from builders.errors import ConfigError
from builders.mapping import Mapping
from builders.sources.opened import open_source
from tests.builders.test_families import answers, check
from tests.convert_tools import convert_opened
from tests.nemo_writer import CORE, OLD, config_of, nemo_tensors, pack, plain_gpt, write_nemo
from tests.oracle import gpt2, random_model, randomize

LAYOUTS = [Mapping(), Mapping(tp_size=2, pp_size=2)]


class Gated(nn.Module):
    """GPT-Next's gated MLP, which Transformers' Nemotron does not have."""

    def __init__(self, config: NemotronConfig) -> None:
        super().__init__()
        sizes = (config.hidden_size, config.intermediate_size)
        self.gate_proj, self.up_proj = (nn.Linear(*sizes, bias=config.mlp_bias) for _ in range(2))
        self.down_proj = nn.Linear(*reversed(sizes), bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


def gpt_next(*, gated: bool = False, **changes: Any) -> NemotronForCausalLM:
    sizes = {"hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 4, "vocab_size": 104}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64}
    sizes |= {"norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = NemotronForCausalLM._from_config(
        NemotronConfig(**{**sizes, **changes}), attn_implementation="eager"
    )
    if gated:
        for layer in model.model.layers:
            layer.mlp = Gated(model.config)
    randomize(model.eval())
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize("mapping", LAYOUTS, ids=repr)
@pytest.mark.parametrize("core", [False, True], ids=["older names", "core names"])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)])
def test_squared_relu(tp: int, pp: int, core: bool, mapping: Mapping, tmp_path: Path) -> None:
    model = gpt_next()
    folder = write_nemo(
        tmp_path / "model", config_of(model, "squared-relu"), nemo_tensors(model, core=core),
        prefix=CORE if core else OLD, tp=tp, pp=pp,
    )  # fmt: skip
    opened = open_source(folder, scratch=tmp_path / "scratch")
    assert opened.spec.rope is not None and opened.spec.rope.rotary_dim == 6
    check(answers(model, opened), convert_opened(opened, mapping, tmp_path / "out"))


@pytest.mark.parametrize("core", [False, True], ids=["older names", "core names"])
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("activation", ["fast-swiglu", "swiglu"])
def test_gated(activation: str, tp: int, core: bool, tmp_path: Path) -> None:
    model = gpt_next(gated=True, num_key_value_heads=2, attention_bias=True, mlp_bias=True)
    two = activation == "swiglu" and not core
    tensors = nemo_tensors(model, core=core, two_tensors=two)
    config = config_of(model, activation)
    folder = write_nemo(tmp_path / "model", config, tensors, prefix=CORE if core else OLD, tp=tp)
    opened = open_source(folder, scratch=tmp_path / "scratch")
    check(answers(model, opened), convert_opened(opened, Mapping(tp_size=2), tmp_path / "out"))


@pytest.mark.parametrize("tp", [1, 2])
def test_plain_gpt(tp: int, tmp_path: Path) -> None:
    model = random_model(gpt2(vocab_size=104))
    config, tensors = plain_gpt(model)  # type: ignore[arg-type]
    opened = open_source(write_nemo(tmp_path / "model", config, tensors, prefix=OLD, tp=tp), scratch=tmp_path)
    check(answers(model, opened), convert_opened(opened, Mapping(pp_size=2), tmp_path / "out"))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_archive_with_its_tokenizer(mode: str, tmp_path: Path) -> None:
    model = gpt_next()
    settings = {"library": "sentencepiece", "type": None, "model": "nemo:5a1f_mt.model", "vocab_file": None}
    settings["tokenizer_model"] = "nemo:77c0_mt.model"
    config = config_of(model, "squared-relu", tokenizer=settings)
    folder = write_nemo(tmp_path / "model", config, nemo_tensors(model, core=False), prefix=OLD, tp=2)
    for name in ("5a1f_mt.model", "77c0_mt.model"):
        (folder / name).write_bytes(b"pieces")
    archive = pack(folder, tmp_path / "model.nemo", mode)
    opened = open_source(archive, scratch=tmp_path / "scratch")
    assert list(opened.weights) == [archive]
    assert [(file.name, file.read_bytes()) for file in opened.tokenizer] == [("tokenizer.model", b"pieces")]
    check(answers(model, opened), convert_opened(opened, Mapping(), tmp_path / "out"))


def test_configuration_of_an_archive_alone(tmp_path: Path) -> None:
    """For weights made up at random: nothing big is unpacked, the tokenizer still travels."""
    model = gpt_next()
    settings = {"library": "megatron", "vocab_file": "nemo:0f_vocab.json", "merge_file": "nemo:1e_merges.txt"}
    config = config_of(model, "relu", tokenizer=settings, override_vocab_size=104)
    folder = write_nemo(tmp_path / "model", config, nemo_tensors(model, core=False), prefix=OLD, tp=2)
    for name in ("0f_vocab.json", "1e_merges.txt"):
        (folder / name).write_text(name)
    archive, scratch = pack(folder, tmp_path / "x.nemo"), tmp_path / "scratch"
    opened = open_source(archive, scratch=scratch, config_only=True)
    assert opened.spec.vocab_size == 104 and not opened.index
    assert {file.name: file.read_text() for file in opened.tokenizer} == {
        "vocab.json": "0f_vocab.json",
        "merges.txt": "1e_merges.txt",
    }
    assert not list(scratch.rglob("*.ckpt"))


def test_tokenizer_beside_an_unpacked_checkpoint(tmp_path: Path) -> None:
    config = config_of(gpt_next(), "relu", tokenizer={"vocab_file": "nemo:0f_vocab.txt"})
    folder = write_nemo(tmp_path / "model", config, nemo_tensors(gpt_next(), core=False), prefix=OLD)
    (folder / "0f_vocab.txt").write_text("words")
    (file,) = open_source(folder, scratch=tmp_path / "not/yet/there").tokenizer
    assert (file.name, file.read_text()) == ("vocab.txt", "words")


def test_shapes_of_the_published_8b_layout(tmp_path: Path) -> None:
    config = config_of(gpt_next(), "fast-swiglu", num_layers=32, hidden_size=4096, ffn_hidden_size=10880)
    config |= {"num_attention_heads": 32, "num_query_groups": None, "override_vocab_size": 256000}
    (tmp_path / "model_config.yaml").write_text(yaml.safe_dump(config))
    spec = open_source(tmp_path, scratch=tmp_path, config_only=True).spec
    assert (spec.head_dim, spec.num_kv_heads, spec.gated, spec.norm) == (128, 32, True, "layernorm1p")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("transformer_block_type", "post_ln"),
        ("activation", "mish"),
        ("normalization", "batchnorm"),
        ("position_embedding_type", "alibi2"),
        ("headscale", True),
        ("rotary_interleaved", True),
        ("num_moe_experts", 8),
        ("megatron_legacy", True),
        ("scale_positional_embedding", True),
        ("apply_residual_connection_post_layernorm", True),
        ("openai_gelu", True),
        ("onnx_safe", True),
        ("rotary_percentage", 1.5),
        ("rotary_percentage", 0),
        ("window_size", [8, 8]),
        ("window_size", ["a", 0]),
        ("window_size", [-2, 0]),
        ("window_size", [True, 0]),
        ("window_size", {"a": 0}),
        *((name, value) for name in ("normalization", "activation", "position_embedding_type")
          for value in (["rope"], [], {"gelu": 1}, {}, 3, False)),
        ("activation", "approx-gelu"),
        ("tokenizer", "sentencepiece"),
        ("tokenizer", ["sentencepiece"]),
        ("mcore_customization_config", {1: 2}),
        ("spin", 2),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_named(field: str, value: object, tmp_path: Path) -> None:
    model = gpt_next()
    config = config_of(model, "squared-relu")
    folder = write_nemo(tmp_path / "model", config, nemo_tensors(model, core=False), prefix=OLD)
    (folder / "model_config.yaml").write_text(yaml.safe_dump({**config, field: value}))
    with pytest.raises(ConfigError, match=re.escape(f"config field {field}={value!r}")):
        open_source(folder, scratch=tmp_path)
