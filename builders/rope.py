"""Rotary frequencies, for every scaling that the model families use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from builders.spec import RopeSpec


def cos_sin(spec: RopeSpec, positions: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [T, rotary_dim / 2] for tokens at `positions` in contexts of `lengths` [T].

    Only `dynamic` and `longrope` read the lengths: the context that a token's own step has reached
    decides its frequencies, and keys already in the cache keep theirs.
    """
    frequencies = _frequencies(spec, lengths)
    angles = positions[:, None].float() * frequencies
    return angles.cos() * spec.attention_factor, angles.sin() * spec.attention_factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the leading dimensions of every head of x [T, heads, head_dim], half against half."""
    half = cos.shape[-1]
    first, second, rest = x.float().split([half, half, x.shape[-1] - 2 * half], dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    rotated = [first * cos - second * sin, second * cos + first * sin, rest]
    return torch.cat(rotated, dim=-1).to(x.dtype)


def _frequencies(spec: RopeSpec, lengths: Tensor) -> Tensor:
    """[rotary_dim / 2], or [T, rotary_dim / 2] where they depend on the context length."""
    device = lengths.device
    if spec.kind == "dynamic":
        return _dynamic(spec, lengths)
    if spec.kind == "longrope":
        short, long = (
            _plain(spec, device) / torch.tensor(factors, device=device)
            for factors in (spec.short_factor, spec.long_factor)
        )
        return torch.where(lengths[:, None] > spec.original_max_positions, long, short)
    if spec.kind == "llama3":
        return _llama3(spec, _plain(spec, device))
    if spec.kind == "yarn":
        return _yarn(spec, _plain(spec, device))
    return _plain(spec, device) / spec.factor


def _exponents(spec: RopeSpec, device: torch.device) -> Tensor:
    return torch.arange(0, spec.rotary_dim, 2, device=device).float() / spec.rotary_dim


def _plain(spec: RopeSpec, device: torch.device) -> Tensor:
    return 1.0 / spec.theta ** _exponents(spec, device)


def _dynamic(spec: RopeSpec, lengths: Tensor) -> Tensor:
    """NTK: the base grows with the context once it is longer than the model was trained for."""
    reached = lengths.clamp(min=spec.max_positions).float()[:, None] / spec.max_positions
    growth = spec.factor * reached - (spec.factor - 1)
    base = spec.theta * growth ** (spec.rotary_dim / (spec.rotary_dim - 2))
    return 1.0 / base ** _exponents(spec, lengths.device)


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
    dims = torch.arange(plain.shape[0], device=plain.device).float()
    stretch = ((dims - low) / (high - low)).clamp(0, 1)
    return stretch * plain / spec.factor + (1 - stretch) * plain


def _yarn_bound(spec: RopeSpec, turns: float) -> float:
    length = math.log(spec.original_max_positions / (turns * 2 * math.pi))
    return spec.rotary_dim * length / (2 * math.log(spec.theta))
