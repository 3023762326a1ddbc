"""The options of `rankforge demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.options import option

MODEL_DIR = Path(__file__).with_name("demo_model")
"""The tiny chat model that comes with the project; its README.md says what it is worth."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """How the demo runs, and where it leaves what it makes."""

    output_dir: Path | None = option(
        None, help="Keep the shards and the engine here; a temporary folder otherwise."
    )
    tp_size: int = option(2, help="Ranks to split the model over: 1, 2 or 4.", least=1, most=4)
    port: int = option(
        0, help="Port to serve at, on this machine alone; 0 takes a free one.", least=0, most=65535
    )
    once: bool = option(False, help="End after the conversation instead of serving until stopped.")
