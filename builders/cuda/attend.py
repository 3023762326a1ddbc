"""Attention as kernel launches: token by token for a batch, in tiles for prompts, or some of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from builders.cuda.example import ANY
from builders.cuda.launch import Kernel, Launch, batch_buckets
from builders.cuda.site import Site
from builders.kernels.attention import (
    TILED_CONFIGS,
    Attention,
    Packed,
    decode,
    decode_configs,
    decode_scratch,
    tiled,
)
from builders.kernels.cache import WRITE_CONFIGS, Paged, rotate_and_write
from builders.kernels.call import Call, Config
from builders.kernels.linear import ScratchSize
from builders.limits import Limits


@dataclass(frozen=True, kw_only=True)
class Attended:
    """The arguments of a fused operator of attention, in the kernels' terms."""

    q: Tensor
    """[T, heads, D]; or, where packed, [T, (heads + 2 kv heads) · D]."""
    heads: int
    cache: Paged
    scale: float
    window: int
    slopes: Tensor | None
    packed: Packed | None = None

    @property
    def attention(self) -> Attention:
        return Attention(heads=self.heads, scale=self.scale, window=self.window, slopes=self.slopes)

    def front(self, tokens: int) -> Attended:
        """The first tokens alone: views that begin where the whole begins, so as aligned as that."""
        where = replace(
            self.cache, positions=self.cache.positions[:tokens], sequences=self.cache.sequences[:tokens]
        )
        packed = self.packed
        if packed and packed.angles:
            cos, sin = packed.angles
            packed = replace(packed, angles=(cos[:tokens], sin[:tokens]))
        return replace(self, q=self.q[:tokens], cache=where, packed=packed)

    @property
    def as_cached(self) -> bool:
        """Whether the cache holds keys and values as a step has them."""
        return self.cache.k_scale is None and self.cache.k.dtype == self.q.dtype

    def new_heads(self) -> Tensor:
        """[T, heads, D], for a result."""
        return self.q.new_empty(self.q.shape[0], self.heads, self.cache.k.shape[3])

    def room(self) -> Tensor:
        """For rotated q, with k and v behind it where they can be read in place of the cache."""
        if not self.as_cached:
            return self.new_heads()
        return self.q.new_empty(self.q.shape[0], self.heads + 2 * self.cache.kv_heads, self.cache.k.shape[3])


class AttendKernel(Kernel):
    """fused.attend."""

    packed = False
    """Whether q comes packed with k and v."""

    def attended(self, args: Sequence[Any]) -> Attended:
        """What the operator's arguments say."""
        q, *where = args
        return _attended(q, q.shape[1], where)

    def buckets(self, limits: Limits) -> Sequence[int]:
        return [ANY, *batch_buckets(limits.max_sequences)]

    def configs(self, site: Site, rows: int, limits: Limits, *, overlap: bool) -> Sequence[Config]:
        if rows == ANY:
            return [replace(config, overlap=overlap) for config in TILED_CONFIGS]
        return decode_configs(rows, _kv_heads(site), limits.max_seq_len, packed=self.packed, overlap=overlap)

    def output(self, args: Sequence[Any]) -> Tensor:
        return self.attended(args).new_heads()

    def calls(self, config: Config, args: Sequence[Any], out: Tensor, launch: Launch) -> list[Call]:
        one = self.attended(args)
        if launch.tiles is not None:
            return self._in_tiles(one, config, launch.tiles(config.blocks["BLOCK_M"]), out)
        return _one_by_one(one, config, out, launch)

    def alone(
        self, count: int, config: Config, args: Sequence[Any], out: Tensor, launch: Launch
    ) -> list[Call]:
        """Beside tiles, the tokens in front that are in none; their keys are written again, if packed."""
        return _one_by_one(self.attended(args).front(count), config, out[:count], launch)

    def _in_tiles(self, one: Attended, config: Config, tiles: Tensor, out: Tensor) -> list[Call]:
        """Prompts: every new key must be in the cache before any tile is attended."""
        if one.packed is None:
            return tiled(one.q, one.attention, one.cache, tiles, config, out=out)
        write, q = replace(WRITE_CONFIGS[0], overlap=config.overlap), one.room()
        return [
            *rotate_and_write(one.q, one.packed.angles, one.cache, write, out=q, clip=one.packed.clip),
            *tiled(q, one.attention, one.cache, tiles, config, out=out, fresh=one.as_cached),
        ]

    def scratch(self, config: Config, args: Sequence[Any]) -> ScratchSize:
        if "SPLITS" not in config.blocks:
            return ScratchSize()
        one = self.attended(args)
        return decode_scratch(one.q.shape[0], one.heads, one.cache.kv_heads, one.cache.k.shape[3], config)


class RotateAndAttendKernel(AttendKernel):
    """fused.rotate_and_attend."""

    packed = True

    def attended(self, args: Sequence[Any]) -> Attended:
        qkv, cos, sin, *where, heads, clip = args
        packed = Packed(angles=None if cos is None else (cos, sin), clip=clip)
        return replace(_attended(qkv, heads, where), packed=packed)


def _one_by_one(one: Attended, config: Config, out: Tensor, launch: Launch) -> list[Call]:
    return decode(one.q, one.attention, one.cache, config, out=out, scratch=launch.scratch, packed=one.packed)


def _attended(q: Tensor, heads: int, where: Sequence[Any]) -> Attended:
    """In the order that the fused operators have in common."""
    k, v, positions, sequences, _lengths, table, slopes, k_scale, v_scale, scale, window = where
    cache = Paged(
        k=k,
        v=v,
        block_table=table,
        positions=positions,
        sequences=sequences,
        k_scale=k_scale,
        v_scale=v_scale,
    )
    return Attended(q=q, heads=heads, cache=cache, scale=scale, window=window, slopes=slopes)


def _kv_heads(site: Site) -> int:
    """Of the first argument with four sizes: the cache."""
    return next(int(arg.shape[2]) for arg in site.args if len(getattr(arg, "shape", ())) == 4)
