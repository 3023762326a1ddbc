"""Who holds what: stages and places partition the model, and impossible sizes come with possible ones."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.errors import LayoutError
from builders.families import from_transformers
from builders.mapping import Mapping, check_mapping, padded_vocab, rank_shape, stage_layers, tp_sizes
from builders.spec import ModelSpec
from tests.strategies import is_legal, mappings, quick, specs, spread_models

LLAMA = from_transformers({"model_type": "llama"})[1]


@quick
@given(st.integers(1, 200), st.integers(1, 200))
def test_stages_partition_the_layers_evenly(num_layers: int, pp_size: int) -> None:
    stages = [stage_layers(num_layers, pp_size, rank) for rank in range(pp_size)]
    assert [layer for stage in stages for layer in stage] == list(range(num_layers))
    lengths = [len(stage) for stage in stages]
    assert lengths == sorted(lengths, reverse=True) and max(lengths) - min(lengths) <= 1


@quick
@given(mappings())
def test_places_are_all_different_and_neighbours_share_a_stage(mapping: Mapping) -> None:
    places = [mapping.place(rank) for rank in range(mapping.world_size)]
    assert len({(place.pp, place.tp) for place in places}) == mapping.world_size
    assert len({(place.pp, place.ep, place.moe_tp) for place in places}) == mapping.world_size
    assert [place.pp for place in places] == sorted(place.pp for place in places)
    assert all(place.tp < mapping.tp_size and place.pp < mapping.pp_size for place in places)


@quick
@given(spread_models())
def test_ranks_together_hold_the_whole_model(spread: tuple[ModelSpec, Mapping]) -> None:
    spec, mapping = spread
    shapes = [rank_shape(spec, mapping, rank) for rank in range(mapping.world_size)]
    stage = shapes[: mapping.tp_size]
    assert sum(shape.num_heads for shape in stage) == spec.num_heads
    assert sum(shape.num_kv_heads for shape in stage) == max(spec.num_kv_heads, mapping.tp_size)
    assert sum(shape.vocab_size for shape in stage) == padded_vocab(spec, mapping) >= spec.vocab_size
    assert sum(shape.num_experts * shape.intermediate_size for shape in stage) == (
        spec.moe.num_experts * spec.intermediate_size if spec.moe else 0
    )
    assert sum(shape.first for shape in shapes) == sum(shape.last for shape in shapes) == mapping.tp_size


@quick
@given(specs(), mappings())
def test_the_sizes_that_an_error_suggests_do_work(spec: ModelSpec, mapping: Mapping) -> None:
    """Doing what the errors say, for each option in turn, always ends at a layout that can be made."""
    for _correction in ("pp", "tp", "ep"):
        try:
            check_mapping(spec, mapping)
        except LayoutError as error:
            mapping = corrected(mapping, str(error))
    check_mapping(spec, mapping)


def corrected(mapping: Mapping, error: str) -> Mapping:
    """The largest of the sizes that the error offers, in place of the one that it names."""
    named = re.match(r"--(\w+)=(\d+): ", error)
    offered = re.search(r"(?:sizes that work: |use --ep_size )(.*)$", error)
    assert named and offered and "\n" not in error
    sizes = [int(size) for size in re.findall(r"\d+", offered[1])]
    assert int(named[2]) == getattr(mapping, named[1]) and int(named[2]) not in sizes
    changes: dict[str, Any] = {named[1]: sizes[-1]}
    if named[1] == "tp_size" and sizes[-1] % mapping.ep_size:
        changes["ep_size"] = 1
    return dataclasses.replace(mapping, **changes)


@quick
@given(specs(), mappings())
def test_exactly_the_offered_tensor_parallel_sizes_work(spec: ModelSpec, mapping: Mapping) -> None:
    offered = tp_sizes(spec, mapping)
    for size in range(1, 2 * spec.num_heads):
        layouts = [
            dataclasses.replace(mapping, pp_size=1, tp_size=size, ep_size=ep)
            for ep in range(1, size + 1)
            if size % ep == 0
        ]
        assert any(is_legal(spec, layout) for layout in layouts) == (size in offered)


@pytest.mark.parametrize("name", ["tp_size", "pp_size", "ep_size"])
@pytest.mark.parametrize("size", [0, -1])
def test_sizes_are_at_least_one(name: str, size: int) -> None:
    with pytest.raises(LayoutError, match=f"^--{name}={size}: must be at least 1$"):
        Mapping(**{name: size})


def test_experts_are_spread_over_the_tensor_parallel_ranks() -> None:
    with pytest.raises(LayoutError, match=r"--ep_size=3: .* sizes that work: 1, 2, 4$"):
        Mapping(tp_size=4, ep_size=3)


@quick
@given(st.integers(1, 5000))
def test_tp_sizes_are_the_divisors_in_order(heads: int) -> None:
    spec = dataclasses.replace(
        LLAMA, num_heads=heads, num_kv_heads=heads, intermediate_size=heads, vocab_size=heads
    )
    assert tp_sizes(spec, Mapping()) == [size for size in range(1, heads + 1) if heads % size == 0]


@pytest.mark.parametrize("name", ["tp_size", "pp_size", "ep_size"])
@pytest.mark.parametrize("size", [2**20 + 1, 10**12, 10**30])
def test_sizes_out_of_reach_are_refused_at_once(name: str, size: int) -> None:
    """Trying every number up to them would take from seconds to for ever."""
    with pytest.raises(LayoutError, match=f"^--{name}={size}: must be at most 1048576$"):
        Mapping(**{"ep_size": 7, name: size})


def test_many_heads_are_divided_at_once() -> None:
    """Trying every number up to the heads would take hours."""
    spec = dataclasses.replace(LLAMA, num_heads=10**12, num_kv_heads=10**12, vocab_size=10**12)
    with pytest.raises(LayoutError, match="sizes that work: 1, 2, 4"):
        check_mapping(spec, Mapping(tp_size=3))
