"""A spec that no decoder could have is refused, whoever made it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given

from builders.errors import ConfigError
from builders.spec import ModelSpec, MoeSpec, RopeSpec
from tests.strategies import quick, specs

SPEC = ModelSpec(
    family="llama",
    vocab_size=101,
    hidden_size=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=32,
    max_positions=16,
    norm="rmsnorm",
    norm_eps=1e-6,
    position="rope",
    rope=RopeSpec(rotary_dim=8),
    activation="silu",
    attention_scale=8**-0.5,
)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        *(
            ({name: size}, f"{name}={size}: must be at least 1")
            for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim")
            for size in (0, -1)
        ),
        ({"intermediate_size": 0}, "intermediate_size=0"),
        ({"max_positions": 0}, "max_positions=0"),
        ({"num_kv_heads": 3}, "num_kv_heads=3: must divide the 4"),
        ({"num_kv_heads": 8}, "num_kv_heads=8: must divide the 4"),
        ({"rope": None}, "position='rope'"),
        ({"position": "alibi"}, "position='alibi'"),
        ({"sliding_window": 0}, "sliding_window=0"),
        ({"sliding_window": -1}, "sliding_window=-1"),
        ({"norm_eps": 0.0}, "norm_eps=0.0"),
        ({"norm_eps": math.nan}, "norm_eps=nan"),
        ({"attention_scale": math.inf}, "attention_scale=inf"),
        ({"logit_scale": math.nan}, "logit_scale=nan"),
        ({"clip_qkv": -1.0}, "clip_qkv=-1.0"),
        ({"moe": MoeSpec(num_experts=2, top_k=3, renormalize=True)}, "top_k=3"),
        ({"moe": MoeSpec(num_experts=2, top_k=0, renormalize=True)}, "top_k=0"),
    ],
    ids=repr,
)
def test_impossible_specs_are_refused_by_field(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(SPEC, **changes)
    assert named in str(caught.value) and "\n" not in str(caught.value)


@quick
@given(specs())
def test_widths_are_of_all_heads_together(spec: ModelSpec) -> None:
    assert (spec.q_size, spec.kv_size) == (
        spec.num_heads * spec.head_dim,
        spec.num_kv_heads * spec.head_dim,
    )
