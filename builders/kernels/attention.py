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


def decode(
    q: Tensor,
    attention: Attention,
    cache: Paged,
    config: Config,
    *,
    out: Tensor,
    scratch: Scratch | None = None,
) -> list[Call]:
    """out [T, heads, D]: each token attends to its sequence up to itself, alone.

    Right for every step, and fast where each sequence has one token or few.
    """
    tokens, heads, dim = out.shape
    splits, block_d = config.blocks["SPLITS"], _columns(dim)
    group = heads // cache.kv_heads
    weight_at = tokens * heads * splits * block_d
    shared = None
    if scratch and splits > 1:
        shared = scratch.partial, scratch.partial[weight_at:], scratch.counters
    joined = bool(config.blocks["JOINED"])
    constants: dict[str, Constant] = {
        **_shape(q, attention, cache),
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
        *(shared or (None, None, None)),
        float(attention.scale),
        cache.block_table.stride(0),
    )
    split = call("attention.decode", args, constants, (tokens, cache.kv_heads, splits), config)
    if shared is None or joined:
        return [split]
    return [split, _join(out, attention, cache, shared[:2], config)]


def _join(
    out: Tensor, attention: Attention, cache: Paged, parts: tuple[Tensor, Tensor], config: Config
) -> Call:
    tokens, heads, dim = out.shape
    blocks = {name: config.blocks[name] for name in ("BLOCK_S", "SPLITS")}
    constants: dict[str, Constant] = {
        "HEADS": heads,
        "DIM": dim,
        "WINDOW": attention.window,
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


def decode_configs(tokens: int, kv_heads: int, longest: int, *, overlap: bool = False) -> tuple[Config, ...]:
    """Candidates: enough programs for the device, but no split without a tile of its own."""
    return tuple(
        Config(
            blocks={"BLOCK_S": block_s, "SPLITS": splits, "JOINED": joined, "DEPTH": depth},
            warps=warps,
            stages=depth,
            overlap=overlap,
        )
        for splits in (1, 2, 4, 8, 16, 32, 64)
        if splits == 1 or (splits * 16 <= longest and splits * tokens * kv_heads <= 2048)
        for block_s, depth, warps in ((32, 3, 4), (64, 2, 4), (64, 3, 4), (128, 2, 4))
        for joined in ((1, 0) if splits > 1 else (1,))
    )


def tiled(
    q: Tensor, attention: Attention, cache: Paged, tiles: Tensor, config: Config, *, out: Tensor
) -> list[Call]:
    """out [T, heads, D] for packed tokens, tile by tile as `tile_table` says; `tiles` [n, 3] of int32.

    Rows in no tile are left as they are.
    """
    constants: dict[str, Constant] = {**_shape(q, attention, cache), "BLOCK_D": _columns(out.shape[2])}
    args = (
        out,
        q,
        cache.k,
        cache.v,
        tiles,
        cache.positions,
        cache.block_table,
        attention.slopes,
        cache.k_scale,
        cache.v_scale,
        float(attention.scale),
        cache.block_table.stride(0),
    )
    return [call("attention.tiled", args, constants, (out.shape[1], tiles.shape[0]), config)]


TILED_CONFIGS = tuple(
    Config(blocks={"BLOCK_M": rows, "BLOCK_S": slots, "DEPTH": depth}, warps=warps, stages=depth)
    for rows, slots, depth, warps in (
        (128, 64, 2, 4),
        (128, 64, 3, 8),
        (128, 128, 2, 8),
        (128, 64, 2, 8),
        (64, 64, 3, 4),
        (64, 32, 3, 4),
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


Tile = tuple[int, int, int]
"""Sequence, first row, rows."""


def tile_table(chunks: Iterable[Chunk], rows: int) -> list[Tile]:
    """Cut chunks into tiles of at most `rows`; those that look back furthest come first, to end together."""
    cut = [
        (chunk.position + start, (chunk.sequence, chunk.first + start, min(rows, chunk.tokens - start)))
        for chunk in chunks
        for start in range(0, chunk.tokens, rows)
    ]
    return [tile for _, tile in sorted(cut, key=lambda entry: -entry[0])]


def max_tiles(tokens: int, sequences: int, rows: int) -> int:
    """The most tiles that any step of these sizes has; tables padded with empty tiles to this fit all."""
    return tokens // rows + min(sequences, tokens)
