"""What would keep a model from being served, looked for before anything is started."""

from __future__ import annotations

import tempfile
from pathlib import Path

from builders.checkpoint import Manifest, check_file, read_manifest
from builders.engine_manifest import EngineManifest, TrtManifest, check_unit, read_engine
from builders.errors import EngineError
from builders.limits import check_limits
from cluster.build import limits_of
from cluster.build_kinds import check_options
from cluster.checkpoints import understand
from cluster.engine_maker import check_words, kind_of, mute
from cluster.inspect_kinds import of_kind
from cluster.serve_config import ModelConfig
from cluster.tokenizer import open_tokenizer


def foresee(config: ModelConfig) -> None:
    """Raise what its replicas on this machine would raise in the end, as far as small files say it.

    Weights are looked at for their sizes only.
    """
    kind, folder = kind_of(config), Path(config.model).expanduser()
    if kind == EngineManifest.format.name:
        _check_engine(folder)
    elif kind == Manifest.format.name:
        _check_checkpoint(config, folder)
    else:
        _check_model(config)
    if kind is not None or config.tokenizer_dir:
        open_tokenizer(folder, config.tokenizer_dir)


def _check_engine(folder: Path) -> None:
    engine = read_engine(folder)
    if not isinstance(engine, TrtManifest):
        for unit in engine.every_unit:
            check_unit(folder, unit)
    if not isinstance(engine, TrtManifest) or engine.stripped:
        for written in engine.checkpoint.ranks:
            check_file(folder / written.name, written, verify=False)
    if why := of_kind(folder, engine).obstacle:
        raise EngineError(f"{folder}: cannot run here: {why}")


def _check_checkpoint(config: ModelConfig, folder: Path) -> None:
    options, manifest = config.options(checkpoint_dir=folder), read_manifest(folder)
    check_options(options)
    check_limits(limits_of(options), manifest.spec)
    for written in manifest.ranks:
        check_file(folder / written.name, written, verify=False)
    check_words(config, folder)


def _check_model(config: ModelConfig) -> None:
    """Of one that is not here, or is an archive, the configuration has to do."""
    options, folder = config.options(model_dir=config.model), Path(config.model)
    check_options(options)
    is_archive = folder.suffix == ".nemo" or (folder / "model_config.yaml").is_file()
    with tempfile.TemporaryDirectory(prefix="rankforge-") as scratch:
        opened, manifest = understand(
            config.model, options, Path(scratch), config_only=is_archive or not folder.exists()
        )
    check_limits(limits_of(options), manifest.spec)
    if not opened.tokenizer and config.tokenizer_dir is None:
        raise mute(config)
