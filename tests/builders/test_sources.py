"""Folders in Hugging Face's layout: what is chosen, what travels along, what old files hold besides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from builders.errors import SourceError
from builders.mapping import Mapping
from builders.sources.hf import open_folder
from builders.sources.opened import Opened, open_source
from tests.convert_tools import convert_opened
from tests.tiny import llama_config, save_llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_llama(tmp_path / "model")


def content(opened: Opened, out: Path) -> bytes:
    """What conversion makes of a source."""
    return (convert_opened(opened, Mapping(), out) / "rank0.safetensors").read_bytes()


def as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_every_format_gives_the_same_shards(folder: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    wanted = content(open_folder(folder), tmp_path / "a")
    assert content(open_folder(tmp_path / "sharded"), tmp_path / "b") == wanted
    as_pickle(folder)
    assert content(open_folder(folder), tmp_path / "c") == wanted


def test_safetensors_are_preferred(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"not looked at")
    assert [file.name for file in open_folder(folder).weights] == ["model.safetensors"]


@torch.no_grad()
def transformers_content(folder: Path) -> dict[str, torch.Tensor]:
    return dict(LlamaForCausalLM.from_pretrained(folder).state_dict())


@pytest.mark.parametrize("stale", ["whole", "names missing files", "no json"])
@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_one_file_is_preferred_to_an_index(kind: str, stale: str, folder: Path, tmp_path: Path) -> None:
    """As Transformers prefers it: whatever the index says, it is not looked at."""
    other = load_file(save_llama(tmp_path / "other", seed=1) / "model.safetensors")
    if kind == "pytorch_model.bin":
        as_pickle(folder)
    part = folder / f"{kind.split('.')[0]}-00001-of-00001.{kind.split('.')[1]}"
    if stale == "whole":
        (save_file if kind == "model.safetensors" else torch.save)(other, part)
    weight_map = {"weight_map": dict.fromkeys(other, part.name)}
    (folder / f"{kind}.index.json").write_text("no json" if stale == "no json" else json.dumps(weight_map))
    opened = open_folder(folder)
    assert [file.name for file in opened.weights] == [kind]
    made = load_file(convert_opened(opened, Mapping(), tmp_path / "out") / "rank0.safetensors")
    wanted = transformers_content(folder)
    assert torch.equal(made["head.weight"][:101], wanted["lm_head.weight"])
    assert not torch.equal(made["head.weight"][:101], other["lm_head.weight"])


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_point_source(stored: torch.dtype, folder: Path, tmp_path: Path) -> None:
    tensors = {name: tensor.to(stored) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    out = convert_opened(open_folder(folder), Mapping(), tmp_path / "out")
    norm = load_file(out / "rank0.safetensors")["layers.1.mlp.down.weight"]
    assert torch.equal(norm, tensors["model.layers.1.mlp.down_proj.weight"].float())


def test_tokenizer_and_generation_settings_travel_and_nothing_else(folder: Path) -> None:
    tokenizer = ["chat_template.jinja", "merges.txt", "special_tokens_map.json", "tokenizer.json"]
    tokenizer += ["tokenizer.model", "tokenizer_config.json", "vocab.json"]
    for name in [*tokenizer, "README.md", "modeling_evil.py", "training_args.bin", "optimizer.pt"]:
        (folder / name).write_text("{}")
    (folder / "vocab.txt").mkdir()
    opened = open_folder(folder)
    assert [file.name for file in opened.tokenizer] == tokenizer
    assert opened.generation == folder / "generation_config.json"


def test_a_configuration_alone(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not looked at")
    for path in (folder, folder / "config.json"):
        opened = open_source(path, scratch=tmp_path, config_only=True)
        assert opened.spec.num_layers == 3 and not opened.weights and not opened.index
        assert opened.dtype == "float32"
    with pytest.raises(SourceError, match="--load_format random"):
        open_source(folder / "config.json", scratch=tmp_path)
    with pytest.raises(SourceError, match="no such folder or file"):
        open_source(tmp_path / "nowhere", scratch=tmp_path)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "a.pth", "b.ckpt", "c.pt"],
)
@pytest.mark.parametrize("config_only", [False, True])
def test_a_file_of_weights_is_not_its_folder(name: str, config_only: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(SourceError, match=f"{name}: a file of weights.*give its folder, {tmp_path}$"):
        open_source(tmp_path / name, scratch=tmp_path, config_only=config_only)


def wrapped_content(folder: Path, content: object, out: Path) -> bytes:
    (folder / "model.safetensors").unlink(missing_ok=True)
    torch.save(content, folder / "pytorch_model.bin")
    return content_of(folder, out)


def content_of(folder: Path, out: Path) -> bytes:
    return content(open_folder(folder), out)


@pytest.mark.parametrize("key", ["state_dict", "model", "module", "weights"])
def test_weights_in_a_dict_inside(key: str, folder: Path, tmp_path: Path) -> None:
    """Beside what training leaves there, which is no weights."""
    tensors = load_file(folder / "model.safetensors")
    wanted = content_of(folder, tmp_path / "a")
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    besides = {"epoch": 3, "optimizer": optimizer, "rng": {"cpu": torch.get_rng_state()}, "args": {}}
    assert wrapped_content(folder, {**besides, key: tensors}, tmp_path / "b") == wanted


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_tensors_beside_the_dict_inside_are_left_over(key: str, folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    message = r"1 tensors that llama does not use: extra$"
    with pytest.raises(SourceError, match=message):
        wrapped_content(folder, {key: tensors, "extra": torch.ones(3)}, tmp_path / "out")
    with pytest.raises(SourceError, match=message):
        wrapped_content(folder, {**tensors, "more": {"extra": torch.ones(3)}}, tmp_path / "out")
    with pytest.raises(SourceError, match=r"'lm_head\.weight' is in it twice"):
        twice = {key: tensors, "lm_head.weight": tensors["lm_head.weight"]}
        wrapped_content(folder, twice, tmp_path / "out")


def test_two_dicts_of_weights_inside(folder: Path, tmp_path: Path) -> None:
    """Nobody is to guess which one; of a state_dict it is known."""
    tensors = load_file(folder / "model.safetensors")
    other = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    wanted = content_of(folder, tmp_path / "a")
    with pytest.raises(SourceError, match="holds weights as each of 'ema', 'model'; save one"):
        wrapped_content(folder, {"ema": other, "model": tensors}, tmp_path / "b")
    assert wrapped_content(folder, {"ema": other, "state_dict": tensors}, tmp_path / "b") == wanted


def add_tensors(folder: Path, *names: str, shape: tuple[int, ...] = (2, 2)) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {name: torch.ones(shape) for name in names}, folder / "model.safetensors")


def test_buffers_of_older_llama_files_are_left_out(folder: Path, tmp_path: Path) -> None:
    wanted = content(open_folder(folder), tmp_path / "a")
    add_tensors(folder, *(f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(3)))
    assert content(open_folder(folder), tmp_path / "b") == wanted


def save_gpt2(folder: Path) -> Path:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=24, n_head=2, n_layer=2, vocab_size=101, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_gpt2_as_its_makers_published_it(tmp_path: Path) -> None:
    """No prefix, no head of its own, and the causal mask as if it were a weight."""
    folder = save_gpt2(tmp_path / "model")
    wanted = content(open_folder(folder), tmp_path / "a")
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(bare, folder / "model.safetensors")
    add_tensors(folder, "h.0.attn.bias", "h.1.attn.bias", "h.1.attn.masked_bias", shape=(1, 1, 16, 16))
    assert content(open_folder(folder), tmp_path / "b") == wanted


def test_a_tied_head_may_be_stored_again(tmp_path: Path) -> None:
    folder = save_gpt2(tmp_path / "model")
    wanted = content(open_folder(folder), tmp_path / "a")
    tensors = load_file(folder / "model.safetensors")
    again = {"lm_head.weight": tensors["transformer.wte.weight"].clone()}
    save_file(tensors | again, folder / "model.safetensors")
    assert content(open_folder(folder), tmp_path / "b") == wanted


def test_fields_that_the_user_vouches_for(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "house_style": "brick"}))
    opened = open_source(folder, scratch=tmp_path, ignored=["house_style"])
    assert opened.spec.num_heads == llama_config().num_attention_heads
