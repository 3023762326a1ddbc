"""An engine of a shape and layout with random weights: programs, a checkpoint for them, and both together."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.random_weights import write_weights
from benchmarks.runtime_cases import Shape
from builders.checkpoint import read_manifest
from builders.engine_manifest import read_engine
from builders.limits import Limits
from builders.mapping import Mapping as Layout
from cluster.build import build
from cluster.build_options import BuildOptions
from cluster.progress import reporter_for


@dataclass(frozen=True, kw_only=True)
class Built:
    """An engine, and what making it took."""

    folder: Path
    build_s: float
    """Of the programs; none where they were found."""
    weights_s: float

    def __str__(self) -> str:
        return f"programs built in {self.build_s:.1f} s, weights made up and linked in {self.weights_s:.1f} s"


def built(shape: Shape, layout: Layout, limits: Limits, target: str, folder: Path) -> Iterator[Built]:
    """Made in this folder, or found there; as a process of its own yields it."""
    folder.mkdir(parents=True, exist_ok=True)
    config, weights = folder / "config.json", folder / "weights"
    config.write_text(json.dumps(shape.config))
    common = {**asdict(limits), "target": target, "no_compile": target == "cpu", "overwrite": True}
    sizes = {name: getattr(layout, name) for name in ("tp_size", "pp_size", "ep_size")}
    began = time.monotonic()
    programs = _build(
        folder / "programs",
        model_config=str(config),
        no_weights=True,
        dtype=shape.dtype,
        **sizes,
        **common,
    )
    programs_at = time.monotonic()
    if not _fits(weights, programs):
        write_weights(programs, weights, "cpu" if target == "cpu" else "cuda")
    engine = _build(folder / "engine", checkpoint_dir=weights, **common)
    yield Built(folder=engine, build_s=programs_at - began, weights_s=time.monotonic() - programs_at)


def _fits(weights: Path, programs: Path) -> bool:
    """Whether weights that are there are of these programs' model."""
    if not (weights / "config.json").is_file():
        return False
    found, wanted = read_manifest(weights), read_engine(programs).checkpoint
    return (found.spec, found.mapping, found.dtype) == (wanted.spec, wanted.mapping, wanted.dtype)


def _build(output: Path, **options: Any) -> Path:
    """Programs lie in the store beside the output, so the second build finds them."""
    reporter = reporter_for(sys.stderr, as_json=False)
    return build(BuildOptions(output_dir=output, **options), reporter).output_dir
