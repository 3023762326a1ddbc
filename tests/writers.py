"""Checkpoints in formats that nobody here can download, written from models that are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

_META = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_meta(
    model: LlamaForCausalLM, folder: Path, *, shards: int, split_vocab: bool, **params: Any
) -> Path:
    """params.json and `shards` files, cut as Meta cuts them."""
    folder.mkdir()
    config = model.config
    base = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "multiple_of": 8,
        "norm_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
        "max_seq_len": config.max_position_embeddings,
    }
    (folder / "params.json").write_text(json.dumps({**base, **params}))
    pieces: list[dict[str, Tensor]] = [{} for _ in range(shards)]
    for name, tensor in model.state_dict().items():
        meta = _meta_name(name)
        if ".wq." in meta or ".wk." in meta:
            tensor = interleave(tensor, config.head_dim)
        for shard, part in enumerate(_cut(meta, tensor, shards, split_vocab)):
            pieces[shard][meta] = part.clone()
    for shard, content in enumerate(pieces):
        content["rope.freqs"] = torch.ones(config.head_dim // 2)
        torch.save(content, folder / f"consolidated.{shard:02d}.pth")
    return folder


def _meta_name(name: str) -> str:
    for ours, theirs in _META.items():
        name = name.replace(ours + ".weight", theirs + ".weight")
    return name.removeprefix("model.")


def interleave(weight: Tensor, head_dim: int) -> Tensor:
    """From half beside half to pairs side by side, head by head."""
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _cut(name: str, tensor: Tensor, shards: int, split_vocab: bool) -> list[Tensor]:
    if tensor.dim() == 1:
        return [tensor] * shards
    by_columns = (".wo.", ".w2.") if split_vocab else (".wo.", ".w2.", "tok_embeddings")
    return list(tensor.chunk(shards, dim=1 if any(part in name for part in by_columns) else 0))
