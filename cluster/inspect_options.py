"""The options of `rankforge inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.options import argument, option


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """What to look at."""

    folder: Path = argument(help="A checkpoint or an engine of ours.")
    verify: bool = option(False, help="Hash every file and compare.")
    json: bool = option(False, help="Print everything as JSON.")
