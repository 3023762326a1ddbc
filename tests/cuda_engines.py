"""Tiny engines for tests on GPUs, built once for all tests of a run; or ahead, on any machine.

    python -m tests.cuda_engines FOLDER [--target sm90] [--workers 4]
    python -m pytest -m gpu --engines FOLDER tests/actors/test_ranks.py

Their kernels are the likeliest, untimed: building them takes no device, and no test asks how fast they are.
They compute in float32, so that greedy tokens are the oracle's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from builders.limits import Limits
from builders.mapping import Mapping
from tests.cluster.test_convert import ROOT, go

if TYPE_CHECKING:
    from tests.actors.subjects import Subject

LAYOUTS = {
    "1": Mapping(),
    "tp2": Mapping(tp_size=2),
    "pp2": Mapping(pp_size=2),
    "ep2": Mapping(tp_size=2, ep_size=2),
    "tp2pp2": Mapping(tp_size=2, pp_size=2),
    "tp4": Mapping(tp_size=4),
}
"""Of ranks in groups."""


def model_of(layout: str) -> str:
    """Which model is split like this."""
    return "mixtral" if layout == "ep2" else "llama2-gqa"


def build_untimed(
    model: Path, mapping: Mapping, limits: Limits, out: Path, target: str, workers: int | None = None
) -> Path:
    """An engine, by the command itself, which sees no device: then it takes the likeliest kernels."""
    sizes = {"tp_size": mapping.tp_size, "pp_size": mapping.pp_size, "ep_size": mapping.ep_size}
    go(model, out / "checkpoint", dtype="float32", **sizes)
    wanted = {name: value for name, value in asdict(limits).items() if value is not None}
    options = {"checkpoint_dir": out / "checkpoint", "output_dir": out / "engine", "target": target, **wanted}
    options["store_dir"] = out.parent / "store"
    if workers:
        options["workers"] = workers
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "cluster", "build", *words]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    return out / "engine"


def here() -> str:
    """The target of the device at hand."""
    major, minor = torch.cuda.get_device_capability()
    return f"sm{major}{minor}"


@dataclass
class CudaEngines:
    """Each is built when it is first asked for, unless it was before."""

    ahead: Path | None
    """Where `main` has left some."""
    scratch: Path
    subjects: Callable[[str], Subject]
    _built: dict[str, Path] = field(default_factory=dict)

    def __call__(self, layout: str) -> Path:
        before = self.ahead / layout / "engine" if self.ahead else None
        if layout not in self._built:
            self._built[layout] = before if before and before.is_dir() else self._build(layout)
        return self._built[layout]

    def _build(self, layout: str) -> Path:
        return self.subjects(model_of(layout)).cuda_engine(LAYOUTS[layout], self.scratch / layout, here())


def main() -> None:
    """Models beside engines: other versions of Transformers may make up others."""
    from tests.actors.subjects import Subject

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="sm90")
    parser.add_argument("--workers", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    subjects = {
        name: Subject.of(name, options.folder / name) for name in {model_of(layout) for layout in LAYOUTS}
    }
    for layout, mapping in LAYOUTS.items():
        out = options.folder / layout
        subjects[model_of(layout)].cuda_engine(mapping, out, options.target, options.workers)


if __name__ == "__main__":
    main()
