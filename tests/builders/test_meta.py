"""Meta's LLaMA folders, written from a known model, give that model's logits and tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from builders.errors import ConfigError, SourceError
from builders.mapping import Mapping
from builders.sources.meta import open_folder
from builders.sources.opened import open_source
from tests.builders.test_families import answers, check
from tests.convert_tools import convert_opened
from tests.oracle import llama, random_model, rope
from tests.writers import write_meta

WIDTH = 128
"""What Meta's rule makes of width 48, rounded up to a multiple of 8."""


def tiny(**changes: Any) -> LlamaForCausalLM:
    return random_model(llama(intermediate_size=WIDTH, num_key_value_heads=4, **changes))  # type: ignore[return-value]


@pytest.mark.parametrize("mapping", [Mapping(), Mapping(tp_size=2, pp_size=2), Mapping(tp_size=4)], ids=repr)
@pytest.mark.parametrize(("shards", "split_vocab"), [(1, True), (2, False), (4, True)])
def test_shards_are_merged(shards: int, split_vocab: bool, mapping: Mapping, tmp_path: Path) -> None:
    model = tiny(vocab_size=104)
    opened = open_source(
        write_meta(model, tmp_path / "model", shards=shards, split_vocab=split_vocab), scratch=tmp_path
    )
    check(answers(model, opened), convert_opened(opened, mapping, tmp_path / "out"))


def test_vocabulary_of_the_embedding(tmp_path: Path) -> None:
    """LLaMA 1 and 2 write vocab_size -1; CodeLlama's is odd."""
    for split_vocab in (True, False):
        folder = write_meta(
            tiny(vocab_size=106),
            tmp_path / f"{split_vocab}",
            shards=2,
            split_vocab=split_vocab,
            vocab_size=-1,
        )
        assert open_folder(folder).spec.vocab_size == 106


def test_scaled_rope_and_grouped_queries(tmp_path: Path) -> None:
    config = rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
    config.rope_parameters["factor"] = 8.0
    config.rope_parameters["rope_theta"] = 5e5
    config.intermediate_size, config.max_position_embeddings, config.vocab_size = WIDTH, 16384, 104
    model = random_model(config)
    folder = write_meta(
        model, tmp_path / "model", shards=2, split_vocab=False, use_scaled_rope=True, rope_theta=500000.0
    )
    opened = open_folder(folder)
    assert opened.spec.rope is not None and opened.spec.rope.factor == 8
    check(answers(model, opened), convert_opened(opened, Mapping(tp_size=2), tmp_path / "out"))


@pytest.mark.parametrize(("layers", "factor"), [(16, 32), (28, 32), (32, 8)])
def test_scaling_of_published_models(layers: int, factor: float, tmp_path: Path) -> None:
    params = {"dim": 2048, "n_layers": layers, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256}
    params |= {"ffn_dim_multiplier": 1.5, "multiple_of": 256, "norm_eps": 1e-5, "rope_theta": 5e5}
    (tmp_path / "params.json").write_text(json.dumps({**params, "use_scaled_rope": True}))
    spec = open_folder(tmp_path, config_only=True).spec
    assert spec.rope is not None and spec.rope.factor == factor
    assert (spec.intermediate_size, spec.max_positions) == (8192, 131072)


SIZES_7B = {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "vocab_size": 32000}


@pytest.mark.parametrize(
    ("params", "positions"),
    [
        ({"norm_eps": 1e-6}, 2048),
        ({"norm_eps": 1e-5}, 4096),
        ({}, 4096),
        ({"norm_eps": 1e-6, "max_seq_len": 4096}, 4096),
        ({"norm_eps": 1e-5, "max_seq_len": 2048}, 2048),
        ({"norm_eps": 1e-5, "rope_theta": 1000000}, 16384),
        ({"norm_eps": 1e-5, "rope_theta": 500000.0}, 8192),
    ],
    ids=["LLaMA 1", "LLaMA 2", "unsaid", "says 4096", "says 2048", "CodeLlama", "LLaMA 3"],
)
def test_longest_text(params: dict[str, Any], positions: int, tmp_path: Path) -> None:
    """Published folders do not write it down; max_seq_len is the way to say it."""
    (tmp_path / "params.json").write_text(json.dumps({**SIZES_7B, **params}))
    spec = open_folder(tmp_path, config_only=True).spec
    assert (spec.max_positions, spec.intermediate_size) == (positions, 11008)


def test_tokenizer_travels(tmp_path: Path) -> None:
    folder = write_meta(tiny(), tmp_path / "model", shards=1, split_vocab=True)
    (folder / "tokenizer.model").write_bytes(b"pieces")
    assert [file.name for file in open_folder(folder).tokenizer] == ["tokenizer.model"]


def test_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_meta(tiny(), tmp_path / "model", shards=4, split_vocab=False)
    (folder / "consolidated.01.pth").unlink()
    with pytest.raises(SourceError, match=r"without a gap, found \[0, 2, 3\]"):
        open_folder(folder)


def test_tensor_of_one_shard_alone(tmp_path: Path) -> None:
    folder = write_meta(tiny(), tmp_path / "model", shards=2, split_vocab=False)
    content = torch.load(folder / "consolidated.01.pth", weights_only=True)
    del content["norm.weight"]
    torch.save(content, folder / "consolidated.01.pth")
    with pytest.raises(SourceError, match=r"norm.weight is in 1 of 2 shards"):
        open_folder(folder)


def test_last_shard_is_missed(tmp_path: Path) -> None:
    folder = write_meta(tiny(vocab_size=104), tmp_path / "model", shards=2, split_vocab=True)
    (folder / "consolidated.01.pth").unlink()
    with pytest.raises(SourceError, match="or files are missing"):
        convert_opened(open_folder(folder), Mapping(), tmp_path / "out")


@pytest.mark.parametrize("rows", [60, 68])
def test_shards_of_two_checkpoints(rows: int, tmp_path: Path) -> None:
    folder = write_meta(tiny(vocab_size=104), tmp_path / "model", shards=2, split_vocab=True)
    content = torch.load(folder / "consolidated.01.pth", weights_only=True)
    content["layers.1.feed_forward.w1.weight"] = torch.zeros(rows, 48)
    torch.save(content, folder / "consolidated.01.pth")
    with pytest.raises(SourceError, match=r"w1.weight of shape .* not of one checkpoint"):
        convert_opened(open_folder(folder), Mapping(), tmp_path / "out")


@pytest.mark.parametrize(
    ("field", "value"),
    [("ffn_dim_multiplier", 1e308), ("ffn_dim_multiplier", 0), ("n_heads", 5), ("n_layers", 0)],
)
def test_parameter_out_of_range_is_named(field: str, value: float, tmp_path: Path) -> None:
    folder = write_meta(tiny(), tmp_path / "model", shards=1, split_vocab=True, **{field: value})
    with pytest.raises(ConfigError, match=rf"config field {field}="):
        open_folder(folder)


def test_ignored_parameter(tmp_path: Path) -> None:
    folder = write_meta(tiny(), tmp_path / "model", shards=1, split_vocab=True, wheels=4)
    with pytest.raises(ConfigError, match="add --ignore_config_field wheels"):
        open_source(folder, scratch=tmp_path)
    assert open_source(folder, scratch=tmp_path, ignored=["wheels"]).spec.num_layers == 3


def test_other_width_is_another_model(tmp_path: Path) -> None:
    folder = write_meta(tiny(), tmp_path / "model", shards=1, split_vocab=True, multiple_of=256)
    with pytest.raises(SourceError, match="the configuration is another model's"):
        convert_opened(open_folder(folder), Mapping(), tmp_path / "out")


@pytest.mark.parametrize("field", ["moe", "quantization_args", "vision_chunk_size"])
def test_unknown_parameter_is_named(field: str, tmp_path: Path) -> None:
    folder = write_meta(tiny(), tmp_path / "model", shards=1, split_vocab=True, **{field: {"x": 1}})
    with pytest.raises(ConfigError, match=rf"config field {field}="):
        open_folder(folder)
