"""Putting the shards of every rank back together: the inverse of `builders/shard.py`, for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from builders.mapping import Mapping as RankMapping
from builders.params import params
from builders.shard import Slice, head_is_embedding, targets
from builders.spec import ModelSpec


def merged(
    spec: ModelSpec, mapping: RankMapping, tensors_of: Callable[[int], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Whole parameters from every rank's tensors; NaN where no rank holds an element."""
    summed = {param.name for param in params(spec) if param.kind == "row_bias"}
    wholes = {
        param.name: torch.full(param.shape, 0.0 if param.name in summed else torch.nan)
        for param in params(spec)
    }
    for rank in range(mapping.world_size):
        tensors = tensors_of(rank)
        for target in targets(spec, mapping, rank):
            rows = tensors[target.name].reshape(-1, *target.slices[0].shape[1:])
            pieces = rows.split([part.shape[0] for part in target.slices])
            for part, stored in zip(target.slices, pieces, strict=True):
                _put_back(wholes[part.param], part, stored, add=part.param in summed)
    if head_is_embedding(spec, mapping):
        wholes["head.weight"] = wholes["embed.weight"]
    return wholes


def _put_back(whole: Tensor, part: Slice, stored: Tensor, *, add: bool) -> None:
    """Write a slice to its place; where another rank has written before, it wrote the same."""
    place = whole[slice(*part.rows)]
    place = place if part.cols is None else place[:, slice(*part.cols)]
    stored, padding = stored[: len(place)], stored[len(place) :]
    assert not padding.any(), f"{part.param}: padding holds something"
    written = ~place.isnan()
    assert add or torch.equal(place[written], stored[written]), f"{part.param}: ranks differ"
    place[:] = place + stored if add else stored
