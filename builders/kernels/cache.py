"""Launchers of what takes q, k and v to where attention reads them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from builders.kernels.call import Call, Config, Constant, call, cdiv, power_of_two

WRITE_CONFIGS = tuple(
    Config(blocks={"BLOCK_H": heads}, warps=warps) for heads, warps in ((16, 4), (4, 1), (8, 2), (8, 4))
)


@dataclass(frozen=True, kw_only=True)
class Paged:
    """One layer's cache, and which part of it each token belongs to."""

    k: Tensor
    """[blocks, tokens per block, kv heads, D]"""
    v: Tensor
    block_table: Tensor
    """[sequences, blocks]"""
    positions: Tensor
    """[T] Negative for padding: nothing is written, and attention gives zeros."""
    sequences: Tensor
    """[T] Rows of `block_table`."""
    k_scale: Tensor | None = None
    """One number; divides what is written and multiplies what is read."""
    v_scale: Tensor | None = None

    @property
    def kv_heads(self) -> int:
        """How many this rank holds."""
        return self.k.shape[2]


def rotate_and_write(
    qkv: Tensor,
    angles: tuple[Tensor, Tensor] | None,
    cache: Paged,
    config: Config,
    *,
    out: Tensor,
    clip: float | None = None,
) -> list[Call]:
    """Rotated q to `out` [T, heads, D] and rotated k, and v, to the cache.

    qkv [T, (heads + 2 kv heads) · D]; cos and sin [T, half], float32. `out` may be q's part of qkv. Where it
    has room for all heads, rotated k, and v, are written there too.
    """
    room, dim = out.shape[1:]
    packed = qkv.shape[1] // dim
    heads = packed - 2 * cache.kv_heads
    half = angles[0].shape[1] if angles else 0
    constants: dict[str, Constant] = {
        "HEADS": heads,
        "KV_HEADS": cache.kv_heads,
        "DIM": dim,
        "HALF": half,
        "TOKENS": cache.k.shape[1],
        "CLIPPED": clip is not None,
        "QKV_STRIDE": qkv.stride(0),
        "Q_STRIDE": out.stride(0),
        "WHOLE": room == packed,
        "BLOCK_HALF": power_of_two(max(half, 1)),
        "BLOCK_REST": power_of_two(max(dim - 2 * half, 1)),
    }
    args = (
        out,
        qkv,
        *(angles or (None, None)),
        cache.positions,
        cache.sequences,
        cache.block_table,
        cache.k,
        cache.v,
        cache.k_scale,
        cache.v_scale,
        float(clip or 0.0),
        cache.block_table.stride(0),
    )
    grid = (qkv.shape[0], cdiv(packed, config.blocks["BLOCK_H"]))
    return [call("cache.rotate_and_write", args, constants, grid, config)]


ROTATE_CONFIGS = tuple(Config(blocks={"BLOCK_H": heads}, warps=warps) for heads, warps in ((4, 1), (8, 4)))
PLAIN_WRITE_CONFIGS = tuple(Config(blocks={}, warps=warps) for warps in (1, 4, 8))


def rotate(x: Tensor, angles: tuple[Tensor, Tensor], config: Config, *, out: Tensor) -> list[Call]:
    """out [T, heads, D], contiguous, for x whose heads' columns are; for heads that are not packed."""
    _, heads, dim = x.shape
    constants: dict[str, Constant] = {
        "HEADS": heads,
        "DIM": dim,
        "HALF": angles[0].shape[1],
        "X_STRIDE": x.stride(0),
        "HEAD_STRIDE": x.stride(1),
        "BLOCK_D": power_of_two(dim),
    }
    grid = (x.shape[0], cdiv(heads, config.blocks["BLOCK_H"]))
    return [call("cache.rotate", (out, x, *angles), constants, grid, config)]


def write(k: Tensor, v: Tensor, cache: Paged, config: Config) -> list[Call]:
    """k and v [T, kv heads, D], each token's heads side by side, to the cache."""
    width = k.shape[1] * k.shape[2]
    constants: dict[str, Constant] = {
        "WIDTH": width,
        "TOKENS": cache.k.shape[1],
        "K_STRIDE": k.stride(0),
        "V_STRIDE": v.stride(0),
        "BLOCK": power_of_two(width),
    }
    args = (
        k,
        v,
        cache.positions,
        cache.sequences,
        cache.block_table,
        cache.k,
        cache.v,
        cache.k_scale,
        cache.v_scale,
        cache.block_table.stride(0),
    )
    return [call("cache.write", args, constants, (k.shape[0],), config)]
