"""Launchers of attention over the paged cache, and the table of tiles for steps with prompts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from builders.kernels.cache import Paged
from builders.kernels.call import Call, Config, Constant, call, power_of_two
from builders.kernels.linear import Scratch, ScratchSize


@dataclass(frozen=True, kw_only=True)
class Attention:
    """What attention computes beside its inputs."""

    heads: int
    scale: float
    """Multiplies q·k."""
    window: int = 0
    """A token sees itself and the `window - 1` tokens before it; 0 is no limit."""
    slopes: Tensor | None = None
    """[heads] ALiBi's penalty for distance, float32."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What there is to do to packed q, k and v, whose new k and v are not in the cache yet."""

    angles: tuple[Tensor, Tensor] | None
    """cos and sin [T, half], float32."""
    clip: float | None = None


def decode(
    q: Tensor,
    attention: Attention,
    cache: Paged,
    config: Config,
    *,
    out: Tensor,
    scratch: Scratch | None = None,
    packed: Packed | None = None,
) -> list[Call]:
    """out [T, heads, D]: each token attends to its sequence up to itself, alone.

    Right for every step, and fast where each sequence has one token or few. With `packed`, q is
    [T, (heads + 2 kv heads) · D] and every sequence has one token at most: k is rotated and written with v.
    """
    tokens, heads, dim = out.shape
    splits, block_d = config.blocks["SPLITS"], _columns(dim)
    group = heads // cache.kv_heads
    weight_at = tokens * heads * splits * block_d
    shared = None
    if scratch and splits > 1:
        shared = scratch.partial, scratch.partial[weight_at:], scratch.counters
    angles = packed.angles if packed else None
    constants: dict[str, Constant] = {
        **_shape(q, attention, cache),
        "PACKED": packed is not None,
        "HALF": angles[0].shape[1] if angles else 0,
        "CLIPPED": packed is not None and packed.clip is not None,
        "GROUP": group,
        "BLOCK_G": max(16, power_of_two(group)),
        "BLOCK_D": block_d,
    }
    args = (
        out,
        q,
        cache.k,
        cache.v,
        cache.positions,
        cache.sequences,
        cache.block_table,
        attention.slopes,
        cache.k_scale,
        cache.v_scale,
        *(angles or (None, None)),
        *(shared or (None, None, None)),
        float(attention.scale),
        float(packed.clip or 0.0) if packed else 0.0,
        cache.block_table.stride(0),
    )
    split = call("attention.decode", args, constants, (tokens, cache.kv_heads, splits), config)
    if shared is None or config.blocks["JOINED"]:
        return [split]
    return [split, _join(out, attention, cache, shared[:2], config, packed=packed is not None)]


def _join(
    out: Tensor,
    attention: Attention,
    cache: Paged,
    parts: tuple[Tensor, Tensor],
    config: Config,
    *,
    packed: bool,
) -> Call:
    tokens, heads, dim = out.shape
    blocks = {name: config.blocks[name] for name in ("BLOCK_S", "SPLITS")}
    constants: dict[str, Constant] = {
        "HEADS": heads,
        "DIM": dim,
        "WINDOW": attention.window,
        "PACKED": packed,
        "BLOCK_D": _columns(dim),
    }
    small = Config(blocks=blocks, warps=4, stages=1, overlap=config.overlap)
    return call("attention.join", (out, cache.positions, *parts), constants, (tokens, heads), small)


def decode_scratch(tokens: int, heads: int, kv_heads: int, dim: int, config: Config) -> ScratchSize:
    """What `decode` needs of the scratch."""
    splits = config.blocks["SPLITS"]
    if splits == 1:
        return ScratchSize()
    return ScratchSize(partial=tokens * heads * splits * (_columns(dim) + 2), counters=tokens * kv_heads)


def _columns(dim: int) -> int:
    """Of a tile of heads; matrix units take no fewer."""
    return max(16, power_of_two(dim))


def decode_configs(
    tokens: int, kv_heads: int, longest: int, *, packed: bool = False, overlap: bool = False
) -> tuple[Config, ...]:
    """Candidates: programs enough for the device, not many more, and no split without a tile of its own."""
    alone = tokens * kv_heads
    fits = [1, *(1 << power for power in range(1, 7) if 16 << power <= longest and alone << power <= _MOST)]
    splits = [count for count in fits if alone * count >= _FEWEST] or fits[-1:]
    cuts = [(count, *cut) for count in splits for cut in (_SPLIT if count > 1 else _WHOLE)]
    made = (
        Config(
            blocks={
                "BLOCK_S": block_s,
                "SPLITS": count,
                "JOINED": joined,
                "DEPTH": depth,
                "EARLY": early if packed else 0,
            },
            warps=warps,
            stages=depth,
            overlap=overlap,
        )
        for count, block_s, depth, warps, early in cuts
        for joined in ((1, 0) if count > 1 else (1,))
    )
    return tuple({repr(config): config for config in made}.values())


_FEWEST, _MOST = 64, 1024
"""Programs that splitting aims for."""

_SPLIT = (
    # BLOCK_S, DEPTH, warps, EARLY
    (64, 3, 4, 0),
    (64, 2, 4, 1),
    (64, 2, 2, 1),
    (32, 2, 2, 1),
    (32, 2, 2, 0),
)
_WHOLE = (
    (64, 3, 4, 0),
    (64, 2, 2, 0),
    (32, 4, 2, 1),
    (32, 3, 1, 0),
    (16, 4, 1, 1),
)


def tiled(
    q: Tensor,
    attention: Attention,
    cache: Paged,
    tiles: Tensor,
    config: Config,
    *,
    out: Tensor,
    fresh: bool = False,
) -> list[Call]:
    """out [T, heads, D] for packed tokens, tile by tile as `tile_table` says; `tiles` [n, 5] of int32.

    Every token's k and v are in the cache. `fresh`: a row of q is followed by its own k and v too, the same
    numbers as in the cache, and those of the step are read there. Rows in no tile are left as they are.
    """
    constants: dict[str, Constant] = {
        **_shape(q, attention, cache),
        "FRESH": fresh,
        "BLOCK_D": _columns(out.shape[2]),
    }
    args = (
        out,
        q,
        cache.k,
        cache.v,
        tiles,
        cache.block_table,
        attention.slopes,
        cache.k_scale,
        cache.v_scale,
        float(attention.scale),
        cache.block_table.stride(0),
    )
    return [call("tiles.tiled", args, constants, (out.shape[1], tiles.shape[0]), config)]


TILED_CONFIGS = tuple(
    Config(blocks={"BLOCK_M": rows, "BLOCK_S": slots, "DEPTH": depth}, warps=warps, stages=depth)
    for rows, slots, depth, warps in (
        (64, 64, 3, 4),
        (64, 32, 3, 4),
        (128, 64, 3, 8),
        (128, 64, 3, 4),
        (128, 64, 2, 4),
        (128, 128, 2, 8),
        (64, 64, 2, 4),
        (64, 32, 4, 4),
        (64, 32, 2, 4),
        (16, 64, 3, 4),
    )
)


def _shape(q: Tensor, attention: Attention, cache: Paged) -> dict[str, Constant]:
    return {
        "HEADS": attention.heads,
        "KV_HEADS": cache.kv_heads,
        "DIM": cache.k.shape[3],
        "TOKENS": cache.k.shape[1],
        "WINDOW": attention.window,
        "Q_STRIDE": q.stride(0),
    }


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Tokens of one sequence that follow each other in a step."""

    sequence: int
    """Row of the block table."""
    first: int
    """Row of its first token among the step's tokens."""
    tokens: int
    position: int
    """Of its first token in the sequence."""


Tile = tuple[int, int, int, int, int]
"""Sequence, first row, rows, the first one's position, and that of the sequence's first in the step."""


def tile_table(chunks: Iterable[Chunk], rows: int) -> list[Tile]:
    """Cut chunks into tiles of at most `rows`; those that look back furthest come first, to end together."""
    tiles = [
        (
            chunk.sequence,
            chunk.first + start,
            min(rows, chunk.tokens - start),
            chunk.position + start,
            chunk.position,
        )
        for chunk in chunks
        for start in range(0, chunk.tokens, rows)
    ]
    return sorted(tiles, key=lambda tile: -tile[3])


def max_tiles(tokens: int, sequences: int, rows: int) -> int:
    """The most tiles that any step of these sizes has; tables padded with empty tiles to this fit all."""
    return tokens // rows + min(sequences, tokens)
