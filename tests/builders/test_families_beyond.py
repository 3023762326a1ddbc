"""What Transformers' own classes do not run as they are: MPT's options, older layouts, other routing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.mixtral import modeling_mixtral

from builders.errors import ConfigError
from builders.mapping import Mapping
from builders.sources.hf import open_folder
from tests.builders.test_families import NEW_TOKENS, Reference, answers, check
from tests.convert_tools import convert_opened
from tests.mpt_reference import MptReference
from tests.oracle import LONG, SHORT, bigcode, llama, mixtral, random_model, randomize, rope
from tests.sim import Ranks

GROUPED = {"attn_type": "grouped_query_attention", "kv_n_heads": 2}

MPT: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"attn_config": GROUPED},
    "multi-query": {"attn_config": {"attn_type": "multiquery_attention"}},
    "qk-ln": {"attn_config": {"qk_ln": True, "clip_qkv": 0.7}},
    "qk-ln-grouped-bias": {"attn_config": {"qk_ln": True, **GROUPED}, "no_bias": False},
    "qk-gn": {"attn_config": {"qk_gn": True, **GROUPED}},
    "bias": {"no_bias": False},
    "logit-scale": {"logit_scale": 0.5},
    "logit-scale-inverse-root": {"logit_scale": "inv_sqrt_d_model"},
    "expansion": {"expansion_ratio": 2},
    "ffn-config": {"ffn_config": {"ffn_type": "mptmlp", "ffn_hidden_size": 100}},
    "alibi-max": {"attn_config": {"alibi_bias_max": 4}},
    "alibi-twelve-heads": {"n_heads": 12},
    "window": {"attn_config": {"sliding_window_size": 3, "softmax_scale": 0.5}},
    "rmsnorm": {"norm_type": "low_precision_rmsnorm", "norm_eps": 0.01, "attn_config": {"qk_ln": True}},
    "learned-positions": {"attn_config": {"alibi": False}, "learned_pos_emb": True},
}


@pytest.mark.parametrize("layout", [Mapping(), Mapping(tp_size=2, pp_size=2), Mapping(tp_size=4)], ids=repr)
@pytest.mark.parametrize("name", MPT)
@torch.no_grad()
def test_mpt_as_its_makers_define_it(name: str, layout: Mapping, tmp_path: Path) -> None:
    model = MptReference(**MPT[name]).eval()
    randomize(model)
    opened = open_folder(model.save(tmp_path / "model"))
    prompt = torch.randint(3, 101, (2, 9), generator=torch.Generator().manual_seed(5))
    wanted = Reference(
        opened=opened, prompt=prompt, logits=model(prompt), tokens=model.greedy(prompt, NEW_TOKENS)
    )
    check(wanted, convert_opened(opened, layout, tmp_path / "out"))


def test_first_santacoder_layout(tmp_path: Path) -> None:
    """`gpt2` with one key-value head: q and kv apart, weights stored [in, out]."""
    model = random_model(bigcode())
    model.save_pretrained(tmp_path / "bigcode")
    wanted = answers(model, open_folder(tmp_path / "bigcode"))
    config = json.loads((tmp_path / "bigcode/config.json").read_text())
    (tmp_path / "santacoder").mkdir()
    older = {name: config[name] for name in ("vocab_size", "n_embd", "n_head", "n_layer", "n_positions")}
    older |= {"model_type": "gpt2", "attention_head_type": "multiquery", "activation_function": "gelu_fast"}
    (tmp_path / "santacoder/config.json").write_text(json.dumps(older))
    tensors = load_file(tmp_path / "bigcode/model.safetensors")
    save_file(as_santacoder(tensors, config["n_embd"]), tmp_path / "santacoder/model.safetensors")
    opened = open_folder(tmp_path / "santacoder")
    for mapping in (Mapping(), Mapping(tp_size=4)):
        out = convert_opened(opened, mapping, tmp_path / f"out{mapping.tp_size}")
        check(replace(wanted, opened=opened), out)


def as_santacoder(tensors: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in tensors.items():
        stored = tensor.T if tensor.dim() == 2 and ".h." in name else tensor
        if ".c_attn." in name:
            renamed[name.replace("c_attn", "q_attn")] = stored[..., :width].contiguous()
            renamed[name.replace("c_attn", "kv_attn")] = stored[..., width:].contiguous()
        else:
            renamed[name] = stored.contiguous()
    return renamed


@pytest.mark.parametrize("mapping", [Mapping(), Mapping(tp_size=2, ep_size=2)], ids=repr)
def test_softmax_before_top_k(mapping: Mapping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--moe_normalization_mode 0: the chosen experts' weights do not add up to one."""

    def forward(router: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = x.reshape(-1, router.hidden_dim) @ router.weight.T
        weights, chosen = logits.softmax(-1).topk(router.top_k)
        return logits, weights, chosen

    monkeypatch.setattr(modeling_mixtral.MixtralTopKRouter, "forward", forward)
    model = random_model(mixtral())
    model.save_pretrained(tmp_path / "model")
    opened = open_folder(tmp_path / "model")
    assert opened.spec.moe is not None
    spec = replace(opened.spec, moe=replace(opened.spec.moe, renormalize=False))
    wanted = answers(model, replace(opened, spec=spec))
    check(wanted, convert_opened(wanted.opened, mapping, tmp_path / "out"))


@torch.no_grad()
def test_llama_whose_configuration_speaks_of_a_window(tmp_path: Path) -> None:
    """The remedy that its refusal names gives what Transformers computes.

    Its logits, that is: while it decodes, Transformers forgets the keys that the field's window leaves out.
    """
    random_model(llama()).save_pretrained(tmp_path / "model")
    file = tmp_path / "model/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "sliding_window": 3}))
    with pytest.raises(ConfigError, match="--ignore_config_field sliding_window"):
        open_folder(tmp_path / "model")
    opened = open_folder(tmp_path / "model", ignored=["sliding_window"])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    assert loaded.config.sliding_window == 3
    prompt = torch.randint(3, 101, (2, 11), generator=torch.Generator().manual_seed(5))
    ranks = Ranks(convert_opened(opened, Mapping(tp_size=2), tmp_path / "out"), 2, 11)
    wanted = loaded(prompt).logits
    assert (ranks.forward(prompt, 0) - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("length", [11, 30], ids=["crossing while decoding", "crossed by the prompt"])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("dynamic", {}),
        ("longrope", {"short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 24}),
    ],
)
@torch.no_grad()
def test_rope_beyond_the_length_of_pretraining(
    kind: str, changes: dict[str, Any], length: int, tmp_path: Path
) -> None:
    config = rope(kind, **changes)
    config.max_position_embeddings = 24 if kind == "dynamic" else 64
    model = random_model(config)
    model.save_pretrained(tmp_path / "model")
    opened = open_folder(tmp_path / "model")
    prompt = torch.randint(3, 101, (2, length), generator=torch.Generator().manual_seed(5))
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    logits = model(prompt).logits  # first: Transformers keeps the frequencies of the longest text it saw
    tokens = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    wanted = Reference(opened=opened, prompt=prompt, logits=logits, tokens=tokens)
    check(wanted, convert_opened(opened, Mapping(), tmp_path / "out"))
