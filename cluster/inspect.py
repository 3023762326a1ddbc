"""`rankforge inspect`: what a checkpoint holds, where it came from, and how large each rank is."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table

from builders.checkpoint import Manifest, check_file, read_manifest
from builders.mapping import padded_vocab, rank_shape
from builders.memory import cache_bytes_per_token
from builders.sources.stored import index_file
from builders.tensor_file import NAMES
from cluster.checkpoints import rank_sizes


def inspect(folder: Path, *, verify: bool) -> dict[str, Any]:
    """Everything that is known about a checkpoint; with `verify` every byte is hashed."""
    manifest = read_manifest(folder)
    for written in manifest.ranks:
        check_file(folder / written.name, written, verify=verify)
    return {
        "kind": "checkpoint",
        "key": manifest.key,
        "dtype": manifest.dtype,
        "weights": weights_of(manifest),
        "verified": verify,
        "spec": manifest.spec.to_json(),
        "mapping": {
            **asdict(manifest.mapping),
            "world_size": manifest.mapping.world_size,
            "padded_vocab": padded_vocab(manifest.spec, manifest.mapping),
        },
        "ranks": [
            _rank(folder, manifest, rank, num_bytes) for rank, num_bytes in enumerate(rank_sizes(manifest))
        ],
        "source": asdict(manifest.source),
        "tokenizer": sorted(file.name for file in (folder / "tokenizer").glob("*")),
    }


def weights_of(manifest: Manifest) -> str:
    """Where weights come from: rank files, made up on loading, or nowhere."""
    if manifest.held == ():
        return "none, programs only"
    origin = "" if manifest.random_seed is None else f"random, seed {manifest.random_seed}"
    if not manifest.ranks:
        return origin
    some = "" if len(manifest.ranks) == manifest.mapping.world_size else f" of ranks {manifest.held}"
    return f"files{some}" + (f", {origin}" if origin else "")


def _rank(folder: Path, manifest: Manifest, rank: int, weight_bytes: int) -> dict[str, Any]:
    shape = rank_shape(manifest.spec, manifest.mapping, rank)
    return {
        "rank": rank,
        **{name: getattr(manifest.mapping.place(rank), name) for name in ("tp", "pp", "ep")},
        "layers": [shape.layers.start, shape.layers.stop - 1],
        "heads": shape.num_heads,
        "kv_heads": shape.num_kv_heads,
        "experts": shape.num_experts,
        "weight_bytes": weight_bytes,
        "kv_bytes_per_token": cache_bytes_per_token(manifest, rank),
        "tensors_by_dtype": _dtypes(folder / manifest.rank_file(rank).name)
        if rank in manifest.stored_ranks
        else {},
    }


def _dtypes(file: Path) -> dict[str, int]:
    return dict(Counter(NAMES[stored.dtype] for stored in index_file(file).values()))


def show(found: dict[str, Any], console: Console) -> None:
    """The same, for people."""
    console.print(Group(_summary(found), _ranks(found), _source(found)))


def _summary(found: dict[str, Any]) -> RenderableType:
    spec, mapping = found["spec"], found["mapping"]
    heads = f"{spec['num_heads']} heads of {spec['head_dim']}, {spec['num_kv_heads']} key-value heads"
    mlp = f"{spec['intermediate_size']} wide, {spec['activation']}{', gated' if spec['gated'] else ''}"
    if spec["moe"]:
        mlp += f", {spec['moe']['num_experts']} experts, top {spec['moe']['top_k']}"
    rows = {
        "family": spec["family"],
        "layers": f"{spec['num_layers']} of width {spec['hidden_size']}, {spec['norm']}",
        "attention": f"{heads}, {spec['position']} positions",
        "mlp": mlp,
        "vocabulary": f"{spec['vocab_size']} ({mapping['padded_vocab']} padded)",
        "layout": f"tp {mapping['tp_size']} · pp {mapping['pp_size']} · ep {mapping['ep_size']}, "
        f"embedding split: {mapping['embedding_split']}",
        "weights": ", ".join(
            [found["dtype"], found["weights"], *["every hash verified"] * found["verified"]]
        ),
        "tokenizer": ", ".join(found["tokenizer"]) or "none",
        "key": found["key"],
    }
    table = Table(title="checkpoint", show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


def _ranks(found: dict[str, Any]) -> RenderableType:
    table = Table(title="ranks", title_justify="left")
    for name in (
        "rank",
        "tp",
        "pp",
        "layers",
        "heads",
        "kv",
        "experts",
        "weights",
        "cache per token",
        "tensors",
    ):
        table.add_column(name, justify="right")
    for rank in found["ranks"]:
        first, last = rank["layers"]
        cells = [rank["rank"], rank["tp"], rank["pp"], f"{first}–{last}", rank["heads"], rank["kv_heads"]]
        cells += [rank["experts"] or "-", size(rank["weight_bytes"]), size(rank["kv_bytes_per_token"])]
        cells.append(
            ", ".join(f"{count} {dtype}" for dtype, count in rank["tensors_by_dtype"].items()) or "made up"
        )
        table.add_row(*map(str, cells))
    return table


def _source(found: dict[str, Any]) -> RenderableType:
    source = found["source"]
    revision = f" at {source['revision']}" if source["revision"] else ""
    table = Table(title=f"made from {source['model']}{revision}", title_justify="left")
    for name in ("file", "size", "sha256"):
        table.add_column(name)
    for name, file in source["files"].items():
        table.add_row(name, size(file["num_bytes"]), file["sha256"][:16] + "…")
    return table


def size(num_bytes: int) -> str:
    """Bytes for people, in binary units."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"
