"""Rotary parameters of a Transformers configuration as a RopeSpec."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import get_args

from builders.families.fields import Fields
from builders.spec import RopeKind, RopeSpec

_KNOWN = frozenset(
    """
    rope_type type rope_theta factor original_max_position_embeddings attention_factor beta_fast beta_slow
    mscale mscale_all_dim truncate short_factor long_factor low_freq_factor high_freq_factor
    partial_rotary_factor
    """.split()
)
"""Of all kinds together: one that this kind does not have changes nothing."""


def rope_spec(fields: Fields, *, head_dim: int, max_positions: int) -> RopeSpec:
    """What `rope_parameters` (or the older `rope_theta` and `rope_scaling`) ask for."""
    for older in ("rope_theta", "rope_scaling"):
        fields.written(older)
    values = fields.take("rope_parameters") or {}
    if not isinstance(values, Mapping):
        raise fields.error("rope_parameters", values, "must be an object")
    scaling = fields.written("rope_parameters") is None and fields.written("rope_scaling") is not None
    rope = fields.child("rope_scaling" if scaling else "rope_parameters", values)
    for name in _KNOWN:
        rope.written(name)
    kind = rope.take("rope_type", "default")
    if kind not in get_args(RopeKind):
        raise rope.error("rope_type", kind, f"unknown; known: {', '.join(get_args(RopeKind))}")
    if rope.number("partial_rotary_factor", 1.0) != 1:
        value = values["partial_rotary_factor"]
        raise rope.error("partial_rotary_factor", value, "this family rotates whole heads")
    original = _original_positions(fields, rope) or max_positions
    factor = rope.number("factor", max_positions / original if kind in ("yarn", "longrope") else 1.0)
    return RopeSpec(
        kind=kind,
        theta=rope.number("rope_theta", 10000.0),
        rotary_dim=head_dim,
        factor=factor if kind not in ("default", "longrope") else 1.0,
        max_positions=max_positions if kind == "dynamic" else 0,
        original_max_positions=original if kind in ("llama3", "yarn", "longrope") else 0,
        attention_factor=_attention_factor(kind, rope, factor, original),
        low_freq_factor=rope.number("low_freq_factor", 1.0),
        high_freq_factor=rope.number("high_freq_factor", 4.0),
        beta_fast=rope.optional_number("beta_fast") or 32.0,
        beta_slow=rope.optional_number("beta_slow") or 1.0,
        truncate=rope.flag("truncate", "truncate" not in values),
        short_factor=_factors(rope, "short_factor", kind, head_dim),
        long_factor=_factors(rope, "long_factor", kind, head_dim),
    )


def _original_positions(fields: Fields, rope: Fields) -> int | None:
    """Beside the rotary parameters or among them; Transformers lets the former decide."""
    name = "original_max_position_embeddings"
    return fields.optional_size(name) or rope.optional_size(name)


def _attention_factor(kind: str, rope: Fields, factor: float, original: int) -> float:
    """The published defaults, where the configuration does not give the factor itself."""
    if kind not in ("yarn", "longrope"):
        return 1.0
    given = rope.optional_number("attention_factor")
    if given is not None:
        return given
    if factor <= 1:
        return 1.0
    if kind == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(max(original, 2)))
    mscale, all_dim = rope.optional_number("mscale"), rope.optional_number("mscale_all_dim")
    for name, value in (("mscale", mscale), ("mscale_all_dim", all_dim)):
        if value is not None and value < 0:
            raise rope.error(name, value, "must not be negative")
    if mscale and all_dim:
        return _yarn_scale(factor, mscale) / _yarn_scale(factor, all_dim)
    return _yarn_scale(factor, 1.0)


def _yarn_scale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0


def _factors(rope: Fields, key: str, kind: str, head_dim: int) -> tuple[float, ...]:
    if kind != "longrope":
        return ()
    given = rope.take(key)
    numbers = isinstance(given, list) and all(type(value) in (int, float) for value in given)
    if not numbers or len(given) != head_dim // 2:
        raise rope.error(key, given, f"must be a list of {head_dim // 2} numbers")
    return tuple(map(float, given))
