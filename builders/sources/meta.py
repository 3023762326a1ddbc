"""A folder as Meta publishes LLaMA: params.json, and consolidated.NN.pth in one or more shards."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from builders.errors import SourceError
from builders.families.fields import Fields
from builders.families.view import Family, View, view
from builders.sources.hf import read_json
from builders.sources.opened import Opened
from builders.sources.stored import Index, Stored, index_file
from builders.spec import ModelSpec, RopeSpec

_SCALED_BY_32_LAYERS = (16, 28)
"""LLaMA 3.2's 1B and 3B scale their frequencies by 32, every other scaled model by 8."""


def open_folder(folder: Path, *, ignored: Collection[str] = (), config_only: bool = False) -> Opened:
    """Understand a folder; its weights decide what params.json leaves out."""
    fields = Fields(read_json(folder / "params.json"))
    shards = [] if config_only and fields.written("vocab_size") not in (None, -1) else _shards(folder)
    index = _index(shards)
    spec = _spec(fields, _vocab_size(fields, folder, index))
    fields.check_all_read(ignored)
    tokenizer = folder / "tokenizer.model"
    return Opened(
        family=FAMILY,
        spec=spec,
        index={} if config_only else index,
        weights=[] if config_only else shards,
        tokenizer=[tokenizer] if tokenizer.is_file() else [],
        dtype="bfloat16",
    )


def _shards(folder: Path) -> list[Path]:
    shards = sorted(folder.glob("consolidated.*.pth"))
    numbers = [
        int(match[1]) for file in shards if (match := re.fullmatch(r"consolidated\.(\d+)\.pth", file.name))
    ]
    if numbers != list(range(len(shards))) or not shards:
        raise SourceError(
            f"{folder}: expected consolidated.00.pth and on without a gap, found {numbers}; fetch the others"
        )
    return shards


def _index(shards: list[Path]) -> Index:
    parts: dict[str, list[Stored]] = {}
    for file in shards:
        for name, stored in index_file(file).items():
            parts.setdefault(name, []).append(stored)
    for name, found in parts.items():
        if len(found) != len(shards):
            raise SourceError(f"{found[0].file}: tensor {name} is in {len(found)} of {len(shards)} shards")
    return {name: tuple(found) for name, found in parts.items()}


def _vocab_size(fields: Fields, folder: Path, index: Index) -> int:
    written = fields.written("vocab_size")
    if written not in (None, -1):
        return fields.size("vocab_size")
    if "tok_embeddings.weight" not in index:
        raise SourceError(f"{folder}: vocab_size={written} in params.json and no tok_embeddings.weight")
    parts = index["tok_embeddings.weight"]
    rows, cols = parts[0].shape
    return rows * len(parts) if cols == fields.size("dim") else rows


def _spec(fields: Fields, vocab_size: int) -> ModelSpec:
    hidden, heads = fields.size("dim"), fields.size("n_heads")
    if hidden % heads:
        raise fields.error("n_heads", heads, f"must divide dim={hidden}")
    theta = fields.number("rope_theta", 10000.0)
    scaled = fields.flag("use_scaled_rope")
    layers = fields.size("n_layers")
    return ModelSpec(
        family="llama",
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=fields.optional_size("n_kv_heads") or heads,
        head_dim=hidden // heads,
        intermediate_size=_width(fields, hidden),
        max_positions=_max_positions(fields, theta, scaled),
        norm="rmsnorm",
        norm_eps=fields.number("norm_eps", 1e-5),
        position="rope",
        rope=_rope(fields, theta, scaled, layers, hidden // heads),
        activation="silu",
        gated=True,
        attention_scale=(hidden // heads) ** -0.5,
    )


def _width(fields: Fields, hidden: int) -> int:
    """Two thirds of four times the width, stretched, and rounded up to a multiple."""
    width = int(2 * 4 * hidden / 3)
    if (stretch := fields.optional_number("ffn_dim_multiplier")) is not None:
        if not 0 < stretch < 100:
            raise fields.error("ffn_dim_multiplier", stretch, "must be above 0 and below 100")
        width = int(stretch * width)
    multiple = fields.size("multiple_of", 256)
    return -(-width // multiple) * multiple


def _max_positions(fields: Fields, theta: float, scaled: bool) -> int:
    """What Meta's models with such frequencies were trained for, where `max_seq_len` does not say it.

    Without frequencies of its own a folder is LLaMA 1 (2048) or 2 (4096), and only norm_eps tells them
    apart: LLaMA 1 has 1e-6, LLaMA 2 has 1e-5 but for copies of its 7B chat. 1e-6 is taken for the
    shorter, which serves either correctly.
    """
    if given := fields.optional_size("max_seq_len"):
        return given
    if scaled:
        return 131072
    by_norm = 2048 if fields.number("norm_eps", 1e-5) <= 1e-6 else 4096
    return {500000.0: 8192, 1000000.0: 16384}.get(theta, by_norm)


def _rope(fields: Fields, theta: float, scaled: bool, layers: int, head_dim: int) -> RopeSpec:
    factor = fields.optional_number("rope_scaling_factor")
    if not scaled:
        return RopeSpec(theta=theta, rotary_dim=head_dim)
    return RopeSpec(
        kind="llama3",
        theta=theta,
        rotary_dim=head_dim,
        factor=(32.0 if layers in _SCALED_BY_32_LAYERS else 8.0) if factor is None else factor,
        original_max_positions=8192,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )


def _views(spec: ModelSpec) -> Mapping[str, View]:
    attention, mlp = "layers.{i}.attention", "layers.{i}.feed_forward"
    return {
        "embed": view("tok_embeddings"),
        "layers.{i}.attn_norm": view("layers.{i}.attention_norm"),
        "layers.{i}.attn.q": view(f"{attention}.wq", interleaved=spec.head_dim),
        "layers.{i}.attn.k": view(f"{attention}.wk", interleaved=spec.head_dim),
        "layers.{i}.attn.v": view(f"{attention}.wv"),
        "layers.{i}.attn.o": view(f"{attention}.wo"),
        "layers.{i}.mlp_norm": view("layers.{i}.ffn_norm"),
        "layers.{i}.mlp.gate": view(f"{mlp}.w1"),
        "layers.{i}.mlp.up": view(f"{mlp}.w3"),
        "layers.{i}.mlp.down": view(f"{mlp}.w2"),
        "norm": view("norm"),
        "head": view("output"),
    }


FAMILY = Family(name="llama", views=_views, ignored=r"rope\.freqs")
