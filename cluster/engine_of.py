"""The engine that a command is to run: whole, and built as the command says."""

from __future__ import annotations

from pathlib import Path

from builders.engine_manifest import EngineManifest, held_program, read_engine
from builders.errors import UserError


def engine_of(folder: Path, max_attention_window_size: int | None) -> EngineManifest:
    """The manifest of an engine that has all its ranks, and their weights."""
    manifest = read_engine(folder)
    for rank in range(len(manifest.ranks)):
        held_program(folder, manifest, rank)
    built = manifest.limits.max_attention_window_size
    if max_attention_window_size not in (None, built):
        has = "without one" if built is None else f"with {built}"
        raise UserError(
            f"--max_attention_window_size={max_attention_window_size}: {folder} was built {has}; "
            "give the option to `rankforge build`, or leave it out"
        )
    return manifest
