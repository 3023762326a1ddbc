"""Launcher and candidates of linear layers for two to eight rows."""

from __future__ import annotations

from torch import Tensor

from builders.kernels.call import Call, Config, Constant, call
from builders.kernels.linear import Linear

MAX_ROWS_DIRECT = 8
"""Rows that one multiplication of the matrix units takes."""

_MOST_STEPS = 56
"""They are written out one by one."""


def is_direct(config: Config) -> bool:
    """Whether it is of this file."""
    return "DIRECT" in config.blocks


def direct(
    x: Tensor, layer: Linear, config: Config, *, out: Tensor, residual: Tensor | None = None
) -> list[Call]:
    """out [rows, width] for a layer that is a product and sums: no norm, no activation."""
    assert layer.norm is None and layer.activation is None, "a product and sums"
    constants: dict[str, Constant] = {"N": layer.width, "K": layer.weight.shape[1]}
    args = (out, x, layer.weight, layer.bias, residual, x.shape[0])
    return [call("direct.direct", args, constants, (layer.width // config.blocks["BLOCK_N"],), config)]


def direct_configs(rows: int, layer: Linear, *, overlap: bool = False) -> tuple[Config, ...]:
    """Candidates, for rows and layers that there are any for; a norm before is a launch of its own."""
    narrow = layer.weight.element_size() == 2
    if not 1 < rows <= MAX_ROWS_DIRECT or layer.activation is not None or not narrow:
        return ()
    return tuple(_config(*sizes, overlap) for sizes in _SIZES if _fits(layer, *sizes[:3]))


def _fits(layer: Linear, block_n: int, block_k: int, parts: int) -> bool:
    """Nothing is masked."""
    width, size_in = layer.weight.shape
    whole = width % block_n == 0 and size_in % (parts * block_k) == 0
    return whole and size_in // (parts * block_k) <= _MOST_STEPS


def _config(block_n: int, block_k: int, parts: int, depth: int, overlap: bool) -> Config:
    blocks = {
        "DIRECT": MAX_ROWS_DIRECT,
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
        "PARTS": parts,
        "DEPTH": depth,
    }
    return Config(blocks=blocks, warps=parts, stages=1, overlap=overlap)


_SIZES = (
    # BLOCK_N, BLOCK_K, PARTS, DEPTH
    (16, 64, 4, 6),
    (16, 64, 4, 4),
    (16, 128, 4, 3),
    (16, 64, 8, 3),
    (32, 64, 8, 3),
)
