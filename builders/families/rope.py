"""Rotary parameters of a Transformers configuration as a RopeSpec."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

from builders.families.fields import Fields
from builders.spec import RopeKind, RopeSpec

_KNOWN = frozenset(
    """
    rope_type type rope_theta factor original_max_position_embeddings attention_factor beta_fast beta_slow
    mscale mscale_all_dim truncate short_factor long_factor low_freq_factor high_freq_factor
    partial_rotary_factor
    """.split()
)


def rope_spec(fields: Fields, *, head_dim: int, max_positions: int) -> RopeSpec:
    """What `rope_parameters` (or the older `rope_theta` and `rope_scaling`) ask for."""
    values = fields.take("rope_parameters") or {}
    for older in ("rope_theta", "rope_scaling", "original_max_position_embeddings"):
        fields.written(older)
    kind = values.get("rope_type", "default")
    if kind not in get_args(RopeKind):
        known = ", ".join(get_args(RopeKind))
        raise fields.error("rope_parameters.rope_type", kind, f"unknown; known: {known}")
    _check_keys(fields, values)
    original = values.get("original_max_position_embeddings") or max_positions
    factor = values.get("factor") or (max_positions / original if kind in ("yarn", "longrope") else 1.0)
    return RopeSpec(
        kind=kind,
        theta=float(values.get("rope_theta") or 10000.0),
        rotary_dim=head_dim,
        factor=float(factor) if kind not in ("default", "longrope") else 1.0,
        max_positions=max_positions if kind == "dynamic" else 0,
        original_max_positions=int(original) if kind in ("llama3", "yarn", "longrope") else 0,
        attention_factor=_attention_factor(kind, values, float(factor), original),
        low_freq_factor=float(values.get("low_freq_factor") or 1.0),
        high_freq_factor=float(values.get("high_freq_factor") or 4.0),
        beta_fast=float(values.get("beta_fast") or 32.0),
        beta_slow=float(values.get("beta_slow") or 1.0),
        truncate=bool(values.get("truncate", True)),
        short_factor=_factors(fields, values, "short_factor", kind, head_dim),
        long_factor=_factors(fields, values, "long_factor", kind, head_dim),
    )


def _check_keys(fields: Fields, values: Mapping[str, Any]) -> None:
    for key in sorted(values.keys() - _KNOWN):
        raise fields.error(f"rope_parameters.{key}", values[key], "not understood")
    if values.get("partial_rotary_factor") not in (None, 1, 1.0):
        value = values["partial_rotary_factor"]
        raise fields.error("rope_parameters.partial_rotary_factor", value, "this family rotates whole heads")


def _attention_factor(kind: str, values: Mapping[str, Any], factor: float, original: float) -> float:
    """The published defaults, where the configuration does not give the factor itself."""
    given = values.get("attention_factor")
    if kind not in ("yarn", "longrope") or given is not None:
        return 1.0 if given is None else float(given)
    if factor <= 1:
        return 1.0
    if kind == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(original))
    mscale, all_dim = values.get("mscale"), values.get("mscale_all_dim")
    if mscale and all_dim:
        return _yarn_scale(factor, mscale) / _yarn_scale(factor, all_dim)
    return _yarn_scale(factor, 1.0)


def _yarn_scale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0


def _factors(
    fields: Fields, values: Mapping[str, Any], key: str, kind: str, head_dim: int
) -> tuple[float, ...]:
    if kind != "longrope":
        return ()
    given = values.get(key)
    if not isinstance(given, list) or len(given) != head_dim // 2:
        raise fields.error(f"rope_parameters.{key}", given, f"must be a list of {head_dim // 2} numbers")
    return tuple(float(value) for value in given)
