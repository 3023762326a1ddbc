"""The kernels that choose tokens as more units of an engine: choosing is in none of its programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from builders.cuda.target import Target
from builders.cuda.unit import Choice, sources_hash, triton_version, write_choice
from builders.kernels import draw, likeliest
from builders.kernels.call import Config, Source
from builders.kernels.linear import ScratchSize
from builders.keys import Json, Recipe
from builders.store import Store
from builders.units import Heard

DRAW = "draw"
"""In place of a site's key."""
LIKELIEST = "likeliest"


@dataclass(frozen=True, kw_only=True)
class DrawUnit:
    """Compiled for a vocabulary; there is nothing to choose."""

    vocabulary: int
    target: Target

    @property
    def recipe(self) -> Recipe:
        return _recipe(DRAW, self.target, vocabulary=self.vocabulary)

    def build(self, folder: Path, store: Store, heard: Heard) -> None:
        numbers = _meta(1, dtype=torch.int64)
        wishes = draw.Wishes(reals=_meta(1, 7, dtype=torch.float64), integers=_meta(1, 3, dtype=torch.int64))
        sources = draw.sources(_meta(1, self.vocabulary, dtype=torch.float32), numbers, wishes)
        write_choice(_compiled(DRAW, draw.DRAW_CONFIG, sources, self.target), folder)
        heard(1.0)


@dataclass(frozen=True, kw_only=True)
class LikeliestUnit:
    """The same for the likeliest tokens: of logits as programs give them, and of what becomes of those."""

    vocabulary: int
    padded: int
    """Tokens of a row of logits, with those that fill it up."""
    dtype: str
    """Of the weights."""
    target: Target

    @property
    def recipe(self) -> Recipe:
        sizes = {"vocabulary": self.vocabulary, "padded": self.padded}
        return _recipe(LIKELIEST, self.target, **sizes, dtype=self.dtype)

    def build(self, folder: Path, store: Store, heard: Heard) -> None:
        dtypes = (torch.float32, getattr(torch, self.dtype))
        config = replace(likeliest.LIKELIEST_CONFIG, overlap=self.target.capability >= 90)
        sources = likeliest.sources(self.vocabulary, (self.vocabulary, self.padded), dtypes, config)
        write_choice(_compiled(LIKELIEST, config, sources, self.target), folder)
        heard(1.0)


def _recipe(site: str, target: Target, **inputs: Json) -> Recipe:
    common: dict[str, Json] = {
        "capability": target.capability,
        "sources": sources_hash(),
        "triton": triton_version(),
    }
    return Recipe(f"cuda-{site}", {**inputs, **common})


def _compiled(site: str, config: Config, sources: Iterable[Source], target: Target) -> Choice:
    from builders.kernels.aot import compile_source  # imports a compiler

    compiled = tuple(compile_source(source, target.capability) for source in sources)
    return Choice(site=site, config=config, compiled=compiled, scratch=ScratchSize(), seconds=None)


def _meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")
