"""MPT as its makers publish it, for the options that Transformers' class leaves out.

Written from the published definition: fused q, k, v; clipping before the norms of q and k; grouped
queries; biases everywhere with `no_bias: false`; ALiBi or learned positions; a window that does not
count the token itself; scaled logits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

BASE = {"model_type": "mpt", "vocab_size": 101, "d_model": 48, "n_heads": 4, "n_layers": 3, "max_seq_len": 64}


def norm(config: dict[str, Any], size: int) -> nn.Module:
    eps = config.get("norm_eps", 1e-5)
    if "rmsnorm" in config.get("norm_type", ""):
        return nn.RMSNorm(size, eps=eps)
    return nn.LayerNorm(size, eps=eps, bias=not config.get("no_bias", True))


class Attention(nn.Module):
    """One layer's attention."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, self.heads, bias = config["d_model"], config["n_heads"], not config.get("no_bias", True)
        self.options = config["attn_config"]
        kinds = {"multihead_attention": self.heads, "multiquery_attention": 1}
        self.kv_heads = (
            self.options.get("kv_n_heads") or kinds[self.options.get("attn_type", "multihead_attention")]
        )
        self.dim = width // self.heads
        self.Wqkv = nn.Linear(width, width + 2 * self.kv_heads * self.dim, bias=bias)
        self.out_proj = nn.Linear(width, width, bias=bias)
        if self.options.get("qk_ln") or self.options.get("qk_gn"):
            sizes = (width, self.kv_heads * self.dim) if self.options.get("qk_ln") else (self.dim, self.dim)
            self.q_ln, self.k_ln = (norm(config, size) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.Wqkv(x)
        if clip := self.options.get("clip_qkv"):
            qkv = qkv.clamp(-clip, clip)
        kv_width = self.kv_heads * self.dim
        q, k, v = qkv.split([self.heads * self.dim, kv_width, kv_width], dim=-1)
        if self.options.get("qk_ln"):
            q, k = self.q_ln(q), self.k_ln(k)
        q, k, v = (part.unflatten(-1, (-1, self.dim)).transpose(1, 2) for part in (q, k, v))
        if self.options.get("qk_gn"):
            q, k = self.q_ln(q), self.k_ln(k)
        k, v = (part.repeat_interleave(self.heads // self.kv_heads, dim=1) for part in (k, v))
        scale = self.options.get("softmax_scale")
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask(x.shape[1]), scale=scale)
        return self.out_proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def mask(self, length: int) -> Tensor:
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        window = self.options.get("sliding_window_size", -1)
        hidden = ~(causal if window == -1 else causal.triu(-window))
        bias = torch.zeros(self.heads, length, length)
        if self.options.get("alibi", True):
            bias = bias + build_mpt_alibi_tensor(self.heads, length, self.options.get("alibi_bias_max", 8))
        return bias.masked_fill(hidden, float("-inf"))


class Block(nn.Module):
    """One layer."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, bias = config["d_model"], not config.get("no_bias", True)
        inner = config.get("ffn_config", {}).get("ffn_hidden_size") or int(
            config.get("expansion_ratio", 4) * width
        )
        self.norm_1, self.norm_2 = norm(config, width), norm(config, width)
        self.attn = Attention(config)
        self.ffn = nn.ModuleDict(
            {"up_proj": nn.Linear(width, inner, bias=bias), "down_proj": nn.Linear(inner, width, bias=bias)}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x))
        return x + self.ffn["down_proj"](F.gelu(self.ffn["up_proj"](self.norm_2(x))))  # type: ignore[no-any-return]


class MptReference(nn.Module):
    """The whole model, without a cache."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.config = {**BASE, "attn_config": {}, **changes}
        width = self.config["d_model"]
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(self.config["vocab_size"], width),
                "blocks": nn.ModuleList(Block(self.config) for _ in range(self.config["n_layers"])),
                "norm_f": norm(self.config, width),
            }
        )
        if not self.config["attn_config"].get("alibi", True):
            self.transformer["wpe"] = nn.Embedding(self.config["max_seq_len"], width)

    def forward(self, ids: Tensor) -> Tensor:
        parts = self.transformer
        x = parts["wte"](ids)
        if "wpe" in parts:
            x = x + parts["wpe"](torch.arange(ids.shape[1]))
        for block in parts["blocks"]:
            x = block(x)
        return parts["norm_f"](x) @ parts["wte"].weight.T * self.logit_scale  # type: ignore[no-any-return]

    @property
    def logit_scale(self) -> float:
        scale = self.config.get("logit_scale", 1.0)
        return float(self.config["d_model"] ** -0.5 if scale == "inv_sqrt_d_model" else scale)

    def greedy(self, prompt: Tensor, num_tokens: int) -> Tensor:
        ids = prompt
        for _ in range(num_tokens):
            ids = torch.cat([ids, self(ids)[:, -1:].argmax(-1)], dim=1)
        return ids

    def save(self, folder: Path) -> Path:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(self.config))
        save_file(
            {name: tensor.clone() for name, tensor in self.state_dict().items()}, folder / "model.safetensors"
        )
        return folder
