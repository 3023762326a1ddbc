"""Fused operators as kernel launches: candidates, outputs, and calls for the one that was chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from builders.cuda.example import ANY, Load, example
from builders.cuda.site import Site
from builders.cuda.wide import WIDE, Wide, is_wide
from builders.kernels.attention import (
    TILED_CONFIGS,
    Attention,
    decode,
    decode_configs,
    decode_scratch,
    tiled,
)
from builders.kernels.cache import WRITE_CONFIGS, Paged, rotate_and_write
from builders.kernels.call import Call, Config, Runner
from builders.kernels.linear import (
    MAX_ROWS,
    Linear,
    Scratch,
    ScratchSize,
    linear,
    linear_configs,
    scratch_size,
)
from builders.kernels.norm import NORM_CONFIGS, Norm, norm
from builders.kernels.reduce import PeerBuffers
from builders.limits import Limits
from builders.spec import NormKind


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a step gives every launch beside the operator's arguments."""

    scratch: Scratch | None = None
    tiles: Callable[[int], Tensor] | None = None
    """For steps with prompts: how attention is cut, [n, 3] for tiles of so many rows."""
    peers: PeerBuffers | None = None
    """Where ranks sum up by kernels of ours; otherwise a communicator does."""


class Kernel(Protocol):
    """One operator's kernels."""

    def buckets(self, limits: Limits) -> Sequence[int]:
        """The numbers of rows that are chosen for by themselves."""

    def configs(self, site: Site, rows: int, limits: Limits, *, overlap: bool) -> Sequence[Config]:
        """The candidates, the likeliest first."""

    def output(self, args: Sequence[Any]) -> Tensor:
        """Room for the result."""

    def takes(self, args: Sequence[Any], launch: Launch) -> bool:
        """Whether these arguments are for it, and not for PyTorch: all are, unless told."""
        return True

    def calls(self, config: Config, args: Sequence[Any], out: Tensor, launch: Launch) -> list[Call]:
        """What to launch."""

    def run(self, config: Config, args: Sequence[Any], out: Tensor, launch: Launch, runner: Runner) -> None:
        """Launch it, and whatever else there is to do."""
        runner(self.calls(config, args, out, launch))

    def scratch(self, config: Config, args: Sequence[Any]) -> ScratchSize:
        """What `calls` needs of the scratch: nothing, unless told."""
        return ScratchSize()


def batch_buckets(most: int) -> list[int]:
    """Batches that are chosen for: powers of two, up to the first that holds the largest."""
    return [1 << power for power in range((most - 1).bit_length() + 1)]


class LinearKernel(Kernel):
    """fused.linear: kernels for few rows, cuBLAS between kernels for more of them."""

    def buckets(self, limits: Limits) -> Sequence[int]:
        return [ANY, *(size for size in batch_buckets(MAX_ROWS) if size <= max(16, limits.max_sequences))]

    def configs(self, site: Site, rows: int, limits: Limits, *, overlap: bool) -> Sequence[Config]:
        layer = _layer(example(site, Load.of(rows, limits), "meta"))
        if rows == ANY:
            return [replace(WIDE, overlap=overlap)]
        # Of narrow layers, one row fills no kernel of its own.
        return linear_configs(rows, layer, overlap=overlap) or linear_configs(2, layer, overlap=overlap)

    def output(self, args: Sequence[Any]) -> Tensor:
        x: Tensor = args[0]
        return x.new_empty(x.shape[0], _layer(args).width)

    def calls(self, config: Config, args: Sequence[Any], out: Tensor, launch: Launch) -> list[Call]:
        x, layer, before = args[0], _layer(args), list[Call]()
        if is_wide(config):
            wide = Wide.of(x, layer, args[3], out, overlap=config.overlap)
            return [*wide.before, *wide.after]
        if layer.norm is not None and "BLOCK_M" in config.blocks:
            # Every program would normalize all rows again: for several, that costs more than a launch.
            normed = torch.empty_like(x)
            before = norm(x, layer.norm, _norm_config(config), out=normed)
            x, layer = normed, replace(layer, norm=None)
        return [*before, *linear(x, layer, config, out=out, residual=args[3], scratch=launch.scratch)]

    def run(self, config: Config, args: Sequence[Any], out: Tensor, launch: Launch, runner: Runner) -> None:
        if is_wide(config):
            Wide.of(args[0], _layer(args), args[3], out, overlap=config.overlap).run(runner)
        else:
            runner(self.calls(config, args, out, launch))

    def scratch(self, config: Config, args: Sequence[Any]) -> ScratchSize:
        return ScratchSize() if is_wide(config) else scratch_size(_layer(args), config)


def _norm_config(config: Config) -> Config:
    return replace(NORM_CONFIGS[0], overlap=config.overlap)


_NORMS: Mapping[str, NormKind] = {"rms": "rmsnorm", "layer": "layernorm", "layer1p": "layernorm1p"}


def _layer(args: Sequence[Any]) -> Linear:
    _, weight, bias, _, norm_weight, norm_bias, kind, eps, activation, gated = args
    before = None
    if kind != "none":
        before = Norm(kind=_NORMS[kind], eps=eps, weight=norm_weight, bias=norm_bias)
    named = None if activation == "none" else activation
    return Linear(weight=weight, bias=bias, norm=before, activation=named, gated=gated)


def _paged(
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    sequences: Tensor,
    table: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> Paged:
    """In the order in which the fused operators have them."""
    return Paged(
        k=k,
        v=v,
        block_table=table,
        positions=positions,
        sequences=sequences,
        k_scale=k_scale,
        v_scale=v_scale,
    )


class WriteKernel(Kernel):
    """fused.rotate_and_write; its work grows with the rows, its kernel does not change."""

    def buckets(self, limits: Limits) -> Sequence[int]:
        return [ANY]

    def configs(self, site: Site, rows: int, limits: Limits, *, overlap: bool) -> Sequence[Config]:
        return [replace(config, overlap=overlap) for config in WRITE_CONFIGS]

    def output(self, args: Sequence[Any]) -> Tensor:
        qkv, k_cache, heads = args[0], args[3], args[10]
        return qkv.new_empty(qkv.shape[0], heads, k_cache.shape[3])

    def calls(self, config: Config, args: Sequence[Any], out: Tensor, launch: Launch) -> list[Call]:
        qkv, cos, sin, k, v, positions, sequences, table, k_scale, v_scale, _heads, clip = args
        paged = _paged(k, v, positions, sequences, table, k_scale, v_scale)
        angles = None if cos is None else (cos, sin)
        return rotate_and_write(qkv, angles, paged, config, out=out, clip=clip)


class AttendKernel(Kernel):
    """fused.attend: token by token for a batch, in tiles for prompts."""

    def buckets(self, limits: Limits) -> Sequence[int]:
        return [ANY, *batch_buckets(limits.max_sequences)]

    def configs(self, site: Site, rows: int, limits: Limits, *, overlap: bool) -> Sequence[Config]:
        if rows == ANY:
            return [replace(config, overlap=overlap) for config in TILED_CONFIGS]
        kv_heads = int(site.args[1].shape[2])
        return decode_configs(rows, kv_heads, limits.max_seq_len, overlap=overlap)

    def output(self, args: Sequence[Any]) -> Tensor:
        return torch.empty_like(args[0])

    def calls(self, config: Config, args: Sequence[Any], out: Tensor, launch: Launch) -> list[Call]:
        q, k, v, positions, sequences, _lengths, table, slopes, k_scale, v_scale, scale, window = args
        paged = _paged(k, v, positions, sequences, table, k_scale, v_scale)
        attention = Attention(heads=q.shape[1], scale=scale, window=window, slopes=slopes)
        if launch.tiles is not None:
            tiles = launch.tiles(config.blocks["BLOCK_M"])
            return tiled(q, attention, paged, tiles, config, out=out)
        return decode(q, attention, paged, config, out=out, scratch=launch.scratch)

    def scratch(self, config: Config, args: Sequence[Any]) -> ScratchSize:
        if "SPLITS" not in config.blocks:
            return ScratchSize()
        tokens, heads, dim = args[0].shape
        return decode_scratch(tokens, heads, args[1].shape[2], dim, config)
