"""From an opened source to a checkpoint folder, without the command around it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from builders.checkpoint import Manifest, Provenance
from builders.convert import ConvertPlan, convert_rank
from builders.mapping import Mapping
from builders.sources.opened import Opened
from builders.sources.pieces import locate


def convert_opened(opened: Opened, mapping: Mapping, out: Path) -> Path:
    """Convert every rank in float32."""
    located = locate(opened.family, opened.spec, opened.index)
    plan = ConvertPlan(spec=opened.spec, mapping=mapping, dtype=torch.float32, located=located)
    out.mkdir(parents=True)
    manifest = Manifest(
        spec=opened.spec,
        mapping=mapping,
        dtype="float32",
        source=Provenance(model="test"),
        ranks=tuple(convert_rank(plan, rank, out) for rank in range(mapping.world_size)),
    )
    (out / "config.json").write_text(json.dumps(manifest.to_json()))
    return out
