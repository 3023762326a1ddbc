"""Fused operators as kernel launches: candidates, outputs, and calls for the one that was chosen."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from builders.cuda.example import ANY, Load, example
from builders.cuda.site import Site
from builders.cuda.wide import WIDE, Work, adds_up, is_wide, wide
from builders.kernels.call import Call, Config
from builders.kernels.direct import direct, direct_configs, is_direct
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


class TileTables(Protocol):
    """How a step's prompts are cut, for tiles of any number of rows."""

    @property
    def alone(self) -> int:
        """So many tokens in front are in no tile: each is attended by itself, as in a decoding step."""

    @property
    def made(self) -> Mapping[int, Tensor]:
        """So far."""

    def __call__(self, rows: int) -> Tensor:
        """[n, 5] of int32: see `tile_table`."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a step gives every launch beside the operator's arguments."""

    scratch: Scratch | None = None
    tiles: TileTables | None = None
    """For steps with prompts: how attention is cut."""
    peers: PeerBuffers | None = None
    """Where ranks sum up by kernels of ours; otherwise a communicator does."""
    recorded: dict[Any, Any] | None = None
    """What programs have done in this step, for layers that are like earlier ones; None: none is repeated."""

    def lasting(self) -> list[Tensor]:
        """What launches of this step have in common, whatever they are given."""
        found = [] if self.scratch is None else [self.scratch.partial, self.scratch.counters]
        found += [] if self.tiles is None else self.tiles.made.values()
        if self.peers is not None:
            found += [self.peers.inbox, self.peers.epochs, *self.peers.others]
        return found


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

    def room(self, config: Config, args: Sequence[Any], spent: Collection[int]) -> Tensor:
        """The same, where the memory of some arguments may be written over: nothing does, unless told."""
        return self.output(args)

    def calls(self, config: Config, args: Sequence[Any], out: Tensor, launch: Launch) -> list[Call]:
        """What to launch."""

    def work(self, config: Config, args: Sequence[Any], out: Tensor, launch: Launch) -> Sequence[Work]:
        """All that there is to do, in order: launches, unless told."""
        return self.calls(config, args, out, launch)

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
        several = linear_configs(rows, layer, overlap=overlap) or linear_configs(2, layer, overlap=overlap)
        return [*several, *direct_configs(rows, layer, overlap=overlap)]

    def output(self, args: Sequence[Any]) -> Tensor:
        x: Tensor = args[0]
        return x.new_empty(x.shape[0], _layer(args).width)

    def room(self, config: Config, args: Sequence[Any], spent: Collection[int]) -> Tensor:
        x, residual = args[0], args[3]
        if residual is None or 3 not in spent or not is_wide(config) or not adds_up(_layer(args)):
            return self.output(args)
        apart = residual.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
        return residual if apart and residual.is_contiguous() else self.output(args)

    def calls(self, config: Config, args: Sequence[Any], out: Tensor, launch: Launch) -> list[Call]:
        x, layer, before = args[0], _layer(args), list[Call]()
        if is_wide(config):
            return [one for one in self.work(config, args, out, launch) if isinstance(one, Call)]
        if layer.norm is not None and ("BLOCK_M" in config.blocks or is_direct(config)):
            # Every program would normalize all rows again: for several, that costs more than a launch.
            normed = torch.empty_like(x)
            before = norm(x, layer.norm, _norm_config(config), out=normed)
            x, layer = normed, replace(layer, norm=None)
        if is_direct(config):
            return [*before, *direct(x, layer, config, out=out, residual=args[3])]
        return [*before, *linear(x, layer, config, out=out, residual=args[3], scratch=launch.scratch)]

    def work(self, config: Config, args: Sequence[Any], out: Tensor, launch: Launch) -> Sequence[Work]:
        if is_wide(config):
            return wide(args[0], _layer(args), args[3], out, overlap=config.overlap)
        return self.calls(config, args, out, launch)

    def scratch(self, config: Config, args: Sequence[Any]) -> ScratchSize:
        shared = not is_wide(config) and not is_direct(config)
        return scratch_size(_layer(args), config) if shared else ScratchSize()


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
