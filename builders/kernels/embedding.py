"""Launcher of the embedding of tokens."""

from __future__ import annotations

from torch import Tensor

from builders.kernels.call import Call, Config, Constant, call, cdiv

EMBED_CONFIGS = tuple(
    Config(blocks={"BLOCK": block}, warps=warps, stages=1)
    for block, warps in ((1024, 4), (4096, 8), (256, 1))
)


def embed(
    ids: Tensor,
    weight: Tensor,
    config: Config,
    *,
    out: Tensor,
    first: Tensor | None = None,
    scale: float = 1.0,
    positions: Tensor | None = None,
    position_weight: Tensor | None = None,
) -> list[Call]:
    """out [T, H] = rows of weight · scale, + rows of position_weight.

    `first`, one integer, is the id of weight's first row; ids of other rows give zeros. A negative position
    adds nothing.
    """
    tokens, width = out.shape
    constants: dict[str, Constant] = {"ROWS": weight.shape[0], "WIDTH": width}
    args = (out, ids, weight, first, positions, position_weight, float(scale))
    grid = (tokens, cdiv(width, config.blocks["BLOCK"]))
    return [call("embedding.embed", args, constants, grid, config)]
