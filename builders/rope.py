"""Rotary frequencies, for every scaling that the model families use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from builders.spec import RopeSpec


def tables(spec: RopeSpec) -> tuple[Tensor, Tensor]:
    """The frequencies [rotary_dim / 2], and beside them what the length of the context changes:
    the frequencies of long contexts (`longrope`) or the powers of its growth (`dynamic`)."""
    exponents = torch.arange(0, spec.rotary_dim, 2).float() / spec.rotary_dim
    plain = 1.0 / spec.theta**exponents
    if spec.kind == "dynamic":
        return plain, -exponents * spec.rotary_dim / (spec.rotary_dim - 2)
    if spec.kind == "longrope":
        return plain / torch.tensor(spec.short_factor), plain / torch.tensor(spec.long_factor)
    scaled = {"llama3": _llama3, "yarn": _yarn}.get(spec.kind, _linear)(spec, plain)
    return scaled, torch.empty(0)


def cos_sin(
    spec: RopeSpec, table: tuple[Tensor, Tensor], positions: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """cos and sin [T, rotary_dim / 2] for tokens at `positions` in contexts of `lengths` [T].

    Only `dynamic` and `longrope` read the lengths: the context that a token's own step has reached
    decides its frequencies, and keys already in the cache keep theirs.
    """
    angles = positions.unsqueeze(1).float() * _frequencies(spec, table, lengths)
    cos, sin = angles.cos(), angles.sin()
    if spec.attention_factor == 1:
        return cos, sin
    return cos * spec.attention_factor, sin * spec.attention_factor


def _frequencies(spec: RopeSpec, table: tuple[Tensor, Tensor], lengths: Tensor) -> Tensor:
    """[rotary_dim / 2], or [T, rotary_dim / 2] where they depend on the context length."""
    if spec.kind == "dynamic":
        reached = lengths.clamp(min=spec.max_positions).unsqueeze(1).float() / spec.max_positions
        return table[0] * (reached * spec.factor + (1 - spec.factor)) ** table[1]
    if spec.kind == "longrope":
        return torch.where(lengths.unsqueeze(1) > spec.original_max_positions, table[1], table[0])
    return table[0]


def _linear(spec: RopeSpec, plain: Tensor) -> Tensor:
    return plain / spec.factor


def _llama3(spec: RopeSpec, plain: Tensor) -> Tensor:
    """Long wavelengths are stretched, short ones kept, those between blended."""
    turns = spec.original_max_positions * plain / (2 * math.pi)
    low, high = spec.low_freq_factor, spec.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * plain / spec.factor + keep * plain


def _yarn(spec: RopeSpec, plain: Tensor) -> Tensor:
    """Dimensions that turn often keep their frequency, those that turn rarely are stretched."""
    low, high = (_yarn_bound(spec, turns) for turns in (spec.beta_fast, spec.beta_slow))
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.rotary_dim - 1)
    high += 0.001 if high == low else 0
    stretch = ((torch.arange(plain.shape[0]).float() - low) / (high - low)).clamp(0, 1)
    return stretch * plain / spec.factor + (1 - stretch) * plain


def _yarn_bound(spec: RopeSpec, turns: float) -> float:
    length = math.log(spec.original_max_positions / (turns * 2 * math.pi))
    return spec.rotary_dim * length / (2 * math.log(spec.theta))
