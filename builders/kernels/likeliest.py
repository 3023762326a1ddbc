"""The launcher of the kernels that find the largest of every row."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from builders.kernels.call import Call, Config, Source, call, cdiv, power_of_two

LIKELIEST_CONFIG = Config(blocks={"BLOCK": 1024, "STEPS": 4})


def likeliest(scores: Tensor, *, out: Tensor, config: Config = LIKELIEST_CONFIG) -> list[Call]:
    """out [R] places of the largest of scores [R, V], the first of equals; rows may lie apart."""
    rows, size = scores.shape
    parts = cdiv(size, config.blocks["BLOCK"] * config.blocks["STEPS"])
    found = scores.new_empty(rows, parts, dtype=torch.int64)
    sizes = {"VOCABULARY": size, "STRIDE": scores.stride(0)}
    joining = Config(blocks={"BLOCK": power_of_two(parts)}, warps=1, overlap=config.overlap)
    return [
        call("likeliest.parts", (found, scores), sizes, (rows, parts), config),
        call("likeliest.join", (out, found), {"PARTS": parts}, (rows,), joining),
    ]


def sources(
    vocabulary: int, strides: Iterable[int], dtypes: Iterable[torch.dtype], config: Config = LIKELIEST_CONFIG
) -> list[Source]:
    """All that may be launched for such scores, each once."""
    out = torch.empty(1, dtype=torch.int64, device="meta")
    rows = [
        torch.empty(1, stride, dtype=dtype, device="meta")[:, :vocabulary]
        for stride in strides
        for dtype in dtypes
    ]
    return list(
        dict.fromkeys(one.source for scores in rows for one in likeliest(scores, out=out, config=config))
    )
