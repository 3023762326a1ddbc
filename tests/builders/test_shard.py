"""Sharding and merging is the identity, for every kind of parameter and every layout that can be made."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from torch import Tensor

from builders.decoder import empty_decoder
from builders.mapping import Mapping, rank_shape
from builders.params import Param, params
from builders.shard import Slice, Target, head_is_embedding, targets
from builders.spec import ModelSpec
from tests.merging import merged
from tests.strategies import quick, spread_models

Spread = tuple[ModelSpec, Mapping]


def whole(param: Param) -> Tensor:
    """A parameter of which no two elements are equal, and none is zero."""
    return torch.arange(1.0, 1 + math.prod(param.shape)).view(param.shape)


def cut(tensor: Tensor, part: Slice) -> Tensor:
    """What a rank stores of a parameter: zeros where it is padding, or not added here."""
    stored = torch.zeros(part.shape)
    if not part.zeros:
        held = tensor[slice(*part.rows)]
        held = held if part.cols is None else held[:, slice(*part.cols)]
        stored[: len(held)] = held
    return stored


def file_of(target: Target, wholes: dict[str, Tensor]) -> Tensor:
    """A tensor as it lies in a rank's file."""
    return torch.cat([cut(wholes[part.param], part) for part in target.slices]).view(target.shape)


@quick
@given(spread_models())
def test_merging_the_shards_gives_the_model_back(spread: Spread) -> None:
    spec, mapping = spread
    wholes = {param.name: whole(param) for param in params(spec)}
    if spec.tied_embeddings:
        wholes["head.weight"] = wholes["embed.weight"]

    def tensors_of(rank: int) -> dict[str, Tensor]:
        return {target.name: file_of(target, wholes) for target in targets(spec, mapping, rank)}

    for name, tensor in merged(spec, mapping, tensors_of).items():
        assert torch.equal(tensor, wholes[name]), name


@quick
@given(spread_models())
def test_only_key_value_heads_and_small_tensors_are_copied(spread: Spread) -> None:
    """Each stage stores as much as the model has, but for replicated parameters and copied heads."""
    spec, mapping = spread
    stored = dict.fromkeys((param.name for param in params(spec)), 0)
    for rank in range(mapping.world_size):
        for target in targets(spec, mapping, rank):
            for part in target.slices:
                stored[part.param] += math.prod(part.shape)
    for param in params(spec):
        copies = 1
        if param.kind in ("replicated", "row_bias"):
            copies = mapping.tp_size
        if param.kind == "kv":
            copies = max(1, mapping.tp_size // spec.num_kv_heads)
        if param.kind in ("vocab", "embedding"):
            continue  # padded, and the embedding is whole on every rank unless it is split
        assert stored[param.name] == copies * math.prod(param.shape), param.name


@quick
@given(spread_models())
def test_every_query_head_meets_its_own_key_head(spread: Spread) -> None:
    """A rank's query head j uses the rank's key head j // group, which must be the model's own pair."""
    spec, mapping = spread
    group = spec.num_heads // spec.num_kv_heads
    for rank in range(mapping.world_size):
        shape = rank_shape(spec, mapping, rank)
        slices = {part.param: part for target in targets(spec, mapping, rank) for part in target.slices}
        for layer in shape.layers:
            q, k, v = (slices[f"layers.{layer}.attn.{name}.weight"].rows for name in "qkv")
            assert k == v
            for head in range(shape.num_heads):
                own = k[0] // spec.head_dim + head // (shape.num_heads // shape.num_kv_heads)
                assert own == (q[0] // spec.head_dim + head) // group


@quick
@given(spread_models())
def test_what_is_multiplied_together_is_cut_alike(spread: Spread) -> None:
    """The columns of an output projection are the rows of what feeds it."""
    spec, mapping = spread
    pairs = {"o": "q", "down": "up"}
    for rank in range(mapping.world_size):
        slices = {part.param: part for target in targets(spec, mapping, rank) for part in target.slices}
        for name, part in slices.items():
            path, module, leaf = name.rsplit(".", 2) if name.count(".") > 1 else ("", "", "")
            if leaf == "weight" and module in pairs:
                assert part.cols == slices[f"{path}.{pairs[module]}.weight"].rows
            if leaf == "weight" and module == "gate":
                assert part.rows == slices[f"{path}.up.weight"].rows


@quick
@given(spread_models())
def test_files_hold_exactly_what_the_decoder_has(spread: Spread) -> None:
    spec, mapping = spread
    for rank in range(mapping.world_size):
        wanted = {
            name: tuple(tensor.shape)
            for name, tensor in empty_decoder(spec, mapping, rank).state_dict().items()
        }
        if rank_shape(spec, mapping, rank).last and head_is_embedding(spec, mapping):
            del wanted["head.weight"]
        assert {target.name: target.shape for target in targets(spec, mapping, rank)} == wanted
