"""The kernel that draws tokens as one more unit of an engine: choosing is in none of its programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from builders.cuda.target import Target
from builders.cuda.unit import Choice, sources_hash, triton_version, write_choice
from builders.kernels.call import Source
from builders.kernels.draw import DRAW_CONFIG, Wishes, sources
from builders.kernels.linear import ScratchSize
from builders.keys import Recipe
from builders.store import Store
from builders.units import Heard

DRAW = "draw"
"""In place of a site's key."""


@dataclass(frozen=True, kw_only=True)
class DrawUnit:
    """Compiled for a vocabulary; there is nothing to choose."""

    vocabulary: int
    target: Target

    @property
    def recipe(self) -> Recipe:
        inputs: dict[str, Any] = {
            "vocabulary": self.vocabulary,
            "capability": self.target.capability,
            "sources": sources_hash(),
            "triton": triton_version(),
        }
        return Recipe("cuda-draw", inputs)

    def build(self, folder: Path, store: Store, heard: Heard) -> None:
        from builders.kernels.aot import compile_source  # imports a compiler

        found = self._sources()
        compiled = tuple(compile_source(source, self.target.capability) for source in found)
        heard(1.0)
        choice = Choice(site=DRAW, config=DRAW_CONFIG, compiled=compiled, scratch=ScratchSize(), seconds=None)
        write_choice(choice, folder)

    def _sources(self) -> list[Source]:
        numbers = _meta(1, dtype=torch.int64)
        wishes = Wishes(reals=_meta(1, 7, dtype=torch.float64), integers=_meta(1, 3, dtype=torch.int64))
        return sources(_meta(1, self.vocabulary, dtype=torch.float32), numbers, wishes)


def _meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")
