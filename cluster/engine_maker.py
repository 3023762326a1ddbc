"""The engine of a model that is to be served: found, or converted and built as `rankforge build` does."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from builders.checkpoint import Manifest, read_manifest
from builders.config_file import format_of
from builders.engine_manifest import EngineManifest
from builders.errors import UserError
from cluster.build import build
from cluster.build_kinds import target_of
from cluster.engine_of import engine_of
from cluster.placement import Needs
from cluster.progress import LineReporter
from cluster.serve_config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Made:
    """An engine that is there."""

    folder: Path
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What making it took, by phase; nothing where it was there before."""


def found(config: ModelConfig) -> Made | None:
    """The engine that the model is, if it is one."""
    folder = Path(config.model).expanduser()
    if kind_of(config) != EngineManifest.format.name:
        return None
    engine_of(folder, None)
    check_words(config, folder)
    return Made(folder=folder)


def made(config: ModelConfig) -> Made:
    """Converts and builds what the store lacks. Several processes may do so at once."""
    if there := found(config):
        return there
    kind, folder = kind_of(config), Path(config.model).expanduser()
    source = "checkpoint_dir" if kind == Manifest.format.name else "model_dir"
    options = config.options(**{source: folder if source == "checkpoint_dir" else config.model})
    result = build(options, LineReporter(sys.stderr, as_json=False))
    seconds = result.seconds
    check_words(config, options.output_dir)
    return Made(
        folder=options.output_dir,
        seconds={
            "converted": seconds["convert"],
            "built": sum(spent for phase, spent in seconds.items() if phase != "convert"),
        },
    )


def needs(config: ModelConfig) -> Needs:
    """What its ranks take, as far as is known before the engine is there."""
    kind, folder = kind_of(config), Path(config.model).expanduser()
    if kind == EngineManifest.format.name:
        if config.build:
            given = ", ".join(sorted(config.build))
            raise UserError(f"build: {given}: {config.model} is an engine already; leave them out")
        engine = engine_of(folder, None)
        check_words(config, folder)
        return _needs_of(config, engine.checkpoint, engine.target)
    if folder.is_absolute() and not folder.exists():
        raise UserError(f"model={config.model}: no such folder")
    options = config.options()
    if kind == Manifest.format.name:
        return _needs_of(config, read_manifest(folder), target_of(options))
    on_gpu = target_of(options) != "cpu"
    return Needs(
        tp_size=options.tp_size,
        pp_size=options.pp_size,
        ep_size=options.ep_size or 1,
        rank_cpus=config.cpus_per_rank,
        on_gpu=on_gpu,
        holder_cpus=_holder_cpus(on_gpu, options.tp_size * options.pp_size),
    )


def check_words(config: ModelConfig, made_dir: Path) -> None:
    """The API takes and gives texts."""
    named, folder = config.tokenizer_dir, made_dir / "tokenizer"
    if named is not None and not named.is_dir():
        raise UserError(f"tokenizer_dir={named}: no such folder")
    if named is None and not folder.is_dir():
        raise mute(config)


def mute(config: ModelConfig) -> UserError:
    """Of a model without a tokenizer."""
    return UserError(
        f"{config.model}: has no tokenizer, and serves texts; name a folder with one: tokenizer_dir"
    )


def kind_of(config: ModelConfig) -> str | None:
    """An engine or a checkpoint of ours, or None: then it is to be converted first."""
    return format_of(Path(config.model).expanduser())


def _needs_of(config: ModelConfig, checkpoint: Manifest, target: str) -> Needs:
    mapping, on_gpu = checkpoint.mapping, target != "cpu"
    return Needs(
        tp_size=mapping.tp_size,
        pp_size=mapping.pp_size,
        ep_size=mapping.ep_size,
        rank_bytes=max((written.num_bytes for written in checkpoint.ranks), default=0),
        rank_cpus=config.cpus_per_rank,
        on_gpu=on_gpu,
        holder_cpus=_holder_cpus(on_gpu, mapping.world_size),
    )


def _holder_cpus(on_gpu: bool, ranks: int) -> float:
    """The replica holds rank 0 itself on CPUs, and where there is one; else it is a process beside them."""
    return 1 if on_gpu and ranks > 1 else 0
