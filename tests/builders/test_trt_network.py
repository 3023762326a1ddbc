"""The lowered network of every family, interpreted, against the decoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from builders.export import OPERATORS, UnknownOperator
from builders.mapping import Mapping, check_mapping
from builders.spec import ModelSpec
from builders.trt.lowering import ON_SLOTS, PLAIN, operators
from tests.beyond import BEYOND, spec_of
from tests.builders.test_families import LAYOUTS, MOE_LAYOUTS
from tests.oracle import MODELS
from tests.trt_ranks import Lockstep, decoder, engine
from tests.trt_steps import step_of

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")

STEPS = [
    ([(0, 0, 5), (3, 0, 11), (1, 0, 3)], None),  # prompts of different lengths
    ([(0, 5, 1), (3, 11, 1), (1, 3, 1)], None),  # decoding over a slot that nobody has
    ([(3, 12, 1), (1, 4, 1)], None),
    ([(0, 6, 1), (3, 13, 6), (1, 5, 1)], None),  # more of a prompt among decoding, slot 3 between
    ([(0, 7, 1), (3, 19, 1), (1, 6, 1)], None),
    ([(2, 0, 20), (1, 7, 1)], [20, 0, 3, 19]),  # longer than a prefill; logits of tokens inside
    ([(2, 20, 1), (0, 8, 1), (1, 8, 1), (3, 20, 1)], [3, 1]),
]
"""Slots, first positions, numbers of tokens; and the wanted tokens."""


def worst(spec: ModelSpec, mapping: Mapping, *, strip: bool, dtype: torch.dtype = torch.float32) -> float:
    """The largest difference of any step's logits, of the largest logit."""
    truth = Lockstep.of(mapping, lambda rank, _member: decoder(spec, mapping, rank, dtype))
    lowered = Lockstep.of(
        mapping, lambda rank, member: engine(spec, mapping, rank, trt, member, strip=strip, dtype=dtype)
    )
    generator, errors = torch.Generator().manual_seed(3), []
    for parts, wanted in STEPS:
        step = step_of(parts, wanted)
        ids = torch.randint(0, spec.vocab_size, step.positions.shape, generator=generator)
        expected, found = truth.forward(ids, step), lowered.forward(ids, step)
        assert found.shape == expected.shape and found.dtype == torch.float32
        errors.append(((found - expected).abs().max() / expected.abs().max()).item())
    return max(errors)


def cases() -> list[Any]:
    """Every model whole and in one layout; the others are left to the whole run."""
    often = {"1", "tp2pp2", "ep2"}
    return [
        pytest.param(name, layout, marks=[] if layout in often else pytest.mark.long, id=f"{name}-{layout}")
        for name in [*MODELS, *BEYOND]
        for layout in LAYOUTS | (MOE_LAYOUTS if name.startswith(("mixtral", "dbrx", "experts")) else {})
        if not (name == "mpt-six-heads" and layout == "tp4")
    ]


@pytest.mark.parametrize(("name", "layout"), cases())
def test_network_is_the_decoder(name: str, layout: str) -> None:
    spec, mapping = spec_of(name), (LAYOUTS | MOE_LAYOUTS)[layout]
    check_mapping(spec, mapping)
    assert worst(spec, mapping, strip=layout != "1") < 1e-5


@pytest.mark.parametrize("name", ["llama-tied", "mpt-qk-norm-whole", "mixtral"])
def test_weights_inside_or_given_are_the_same(name: str) -> None:
    assert worst(spec_of(name), Mapping(), strip=True) < 1e-5
    assert worst(spec_of(name), Mapping(tp_size=2), strip=False) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama2-gqa", "mpt", "starcoder2", "mixtral", "nemo-biases"])
def test_narrow_types(name: str, dtype: torch.dtype) -> None:
    """Rounding differs, and a router may then choose otherwise; types and masks must not."""
    assert worst(spec_of(name), Mapping(tp_size=2), strip=True, dtype=dtype) < 0.1


def test_comparison_can_fail() -> None:
    """A scale that is slightly off is seen."""
    spec, mapping = spec_of("llama2-gqa"), Mapping()
    wrong = replace(spec, attention_scale=spec.attention_scale * 1.01)
    truth = Lockstep.of(mapping, lambda rank, _member: decoder(spec, mapping, rank))
    lowered = Lockstep.of(
        mapping, lambda rank, member: engine(wrong, mapping, rank, trt, member, strip=False)
    )
    step = step_of([(0, 0, 9)])
    expected, found = (model.forward(torch.arange(9), step) for model in (truth, lowered))
    assert (found - expected).abs().max() / expected.abs().max() > 1e-4


def test_every_operator_is_known() -> None:
    assert set(PLAIN) | set(ON_SLOTS) == OPERATORS
    assert not set(PLAIN) & set(ON_SLOTS)


def test_unknown_operator_is_named() -> None:
    with pytest.raises(UnknownOperator, match=r"aten\.erfinv"):
        operators(None, None, "")["aten.erfinv"]  # type: ignore[arg-type]
