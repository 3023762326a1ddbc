"""Rotary frequencies at real sizes are those of Transformers, for every scaling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from builders.errors import ConfigError
from builders.families import from_transformers
from builders.rope import cos_sin, tables
from builders.spec import RopeSpec

LENGTHS = [1, 2, 4095, 4096, 4097, 8192, 30000, 131072]

ORIGINAL = "original_max_position_embeddings"
LONG = {
    "short_factor": [1.0 + i / 64 for i in range(64)],
    "long_factor": [1.0 + i / 4 for i in range(64)],
}
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "million": {"rope_theta": 1e6},
    "linear": {"rope_type": "linear", "factor": 8.0},
    "linear, nonsense beside": {"rope_type": "linear", "factor": 8.0, "attention_factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama 3.1": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096},
    "yarn not truncated": {"rope_type": "yarn", "factor": 16.0, "truncate": False, "beta_fast": 16.0},
    "yarn mscale": {"rope_type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.3},
    "yarn factor 1": {"rope_type": "yarn", "factor": 1.0},
    "yarn factor 1, mscale": {"rope_type": "yarn", "factor": 1.0, "mscale": 0.7, "mscale_all_dim": 1.3},
    "yarn mscale alone": {"rope_type": "yarn", "factor": 40.0, "mscale": 0.7},
    "yarn mscale zero": {"rope_type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 0},
    "yarn mscale equal": {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0},
    "yarn attention factor": {
        "rope_type": "yarn",
        "factor": 40.0,
        "attention_factor": 0.7,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
    },
    "yarn betas": {"rope_type": "yarn", "factor": 16.0, "beta_fast": 24.5, "beta_slow": 2.5},
    "yarn betas zero": {"rope_type": "yarn", "factor": 16.0, "beta_fast": 0, "beta_slow": 0},
    "yarn betas null": {"rope_type": "yarn", "factor": 16.0, "beta_fast": None, "beta_slow": None},
    "yarn betas reversed": {"rope_type": "yarn", "factor": 16.0, "beta_fast": 1.0, "beta_slow": 32.0},
    "yarn betas equal": {
        "rope_type": "yarn",
        "factor": 16.0,
        "beta_fast": 8.0,
        "beta_slow": 8.0,
        "truncate": False,
    },
    "yarn beyond every turn": {"rope_type": "yarn", "factor": 16.0, "beta_fast": 1e5, "beta_slow": 1e-5},
    "yarn truncate null": {"rope_type": "yarn", "factor": 16.0, "truncate": None},
    "yarn truncated": {"rope_type": "yarn", "factor": 16.0, "truncate": True},
    "longrope": {"rope_type": "longrope", "factor": 32.0, **LONG, ORIGINAL: 4096},
    "longrope factor": {"rope_type": "longrope", "factor": 32.0, "attention_factor": 1.2, **LONG},
    "yarn implied": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 1024},
    "longrope implied": {"rope_type": "longrope", **LONG, ORIGINAL: 1024},
}


def theirs(config: LlamaConfig, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin of the last token of a text, by a module that has seen nothing before."""
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(length)[None, -1:])
    half = config.head_dim // 2
    return cos[0, :, :half], sin[0, :, :half]


@pytest.mark.parametrize("name", ROPES)
def test_angles_are_those_of_transformers(name: str) -> None:
    parameters = {"rope_type": "default", "rope_theta": 1e4, **ROPES[name]}
    config = LlamaConfig(max_position_embeddings=4096, head_dim=128, rope_parameters=parameters)
    _family, spec = from_transformers(config.to_dict())
    assert spec.rope is not None
    for length in LENGTHS:
        last, reached = torch.tensor([length - 1]), torch.tensor([length])
        ours = cos_sin(spec.rope, tables(spec.rope), last, reached)
        # An angle of 100,000 radians has an error of its own in float32.
        torch.testing.assert_close(ours, theirs(config, length), rtol=0, atol=1e-7 * length + 1e-5)


SCALED: dict[str, dict[str, Any]] = {
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 8.0},
    "yarn implied": {"factor": None},
    "longrope": {"factor": 8.0, **LONG},
    "longrope implied": LONG,
}


@pytest.mark.parametrize("field", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize(
    ("inside", "beside"),
    [(None, None), (2048, None), (None, 2048), (2048, 1024), (1024, 2048)],
    ids=["absent", "inside", "beside", "both, less beside", "both, more beside"],
)
@pytest.mark.parametrize("name", SCALED)
def test_length_of_pretraining_wherever_it_is_written(
    name: str, inside: int | None, beside: int | None, field: str
) -> None:
    """Transformers' own frequencies decide: what is beside the parameters wins over what is inside."""
    kind = name.split()[0]
    parameters = {**SCALED[name], "rope_type": kind, "rope_theta": 5e5, ORIGINAL: inside}
    values = {"head_dim": 128, "max_position_embeddings": 4096, field: without_nulls(parameters)}
    values |= without_nulls({ORIGINAL: beside})
    if name == "yarn implied":
        values[field]["factor"] = None
    _family, spec = from_transformers({"model_type": "llama", **values})
    config = LlamaConfig.from_dict(values)
    assert spec.rope is not None
    short, long = tables(spec.rope)
    frequencies, attention_factor = ROPE_INIT_FUNCTIONS[kind](config)
    torch.testing.assert_close(short, frequencies, rtol=1e-6, atol=0)
    assert spec.rope.attention_factor == pytest.approx(attention_factor)
    assert spec.rope.original_max_positions == (beside or inside or 4096)
    if kind == "longrope":
        beyond, _factor = ROPE_INIT_FUNCTIONS[kind](config, seq_len=(beside or inside or 4096) + 1)
        torch.testing.assert_close(long, beyond, rtol=1e-6, atol=0)


def without_nulls(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize("value", [-1, 0, 2.5, "long", [4096]], ids=repr)
def test_length_of_pretraining_is_checked_beside_too(value: object) -> None:
    values = {"model_type": "llama", "rope_parameters": {"rope_type": "yarn", "factor": 4.0}}
    with pytest.raises(ConfigError, match=f"config field {ORIGINAL}="):
        from_transformers({**values, ORIGINAL: value})


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_every_sequence_has_frequencies_of_its_own_length(kind: str) -> None:
    """A long text in the batch does not change what a short one sees."""
    factors = (1.0, 2.0) if kind == "longrope" else ()
    spec = RopeSpec(
        kind=kind,  # type: ignore[arg-type]
        rotary_dim=4,
        factor=4.0,
        max_positions=8 if kind == "dynamic" else 0,
        original_max_positions=8,
        short_factor=factors,
        long_factor=tuple(2 * factor for factor in factors),
    )
    positions, lengths = torch.tensor([5, 5, 40]), torch.tensor([6, 41, 41])
    together, _sin = cos_sin(spec, tables(spec), positions, lengths)
    for token in range(3):
        alone, _sin = cos_sin(spec, tables(spec), positions[token, None], lengths[token, None])
        assert torch.equal(together[token], alone[0])
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rotary_dim": 3}, "rotary_dim=3"),
        ({"theta": 0.0}, "rope.theta=0.0"),
        ({"theta": float("nan")}, "rope.theta=nan"),
        ({"factor": -2.0}, "rope.factor=-2.0"),
        ({"kind": "dynamic", "rotary_dim": 2, "max_positions": 4}, "rotary_dim=2"),
        ({"kind": "yarn"}, "rope.original_max_positions=0"),
        ({"kind": "yarn", "original_max_positions": 8, "beta_slow": 0.0}, "rope.beta_slow=0.0"),
        ({"kind": "llama3", "original_max_positions": 8, "high_freq_factor": 1.0}, "high_freq_factor=1.0"),
        ({"kind": "longrope", "original_max_positions": 8, "short_factor": (1.0,)}, "short_factor"),
    ],
    ids=repr,
)
def test_what_no_formula_can_use_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        RopeSpec(**{"rotary_dim": 4, **changes})
