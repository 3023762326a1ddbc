"""The options of `rankforge demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.options import option


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Where the demo leaves what it makes."""

    output_dir: Path | None = option(
        None, help="Keep the model and the shards here; a temporary folder otherwise."
    )
