"""Arguments for a site that nobody has run yet: without storage to compile for, on a device to time with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from builders.cuda.site import Site
from builders.kernels.attention import Chunk, tile_table
from builders.limits import Limits
from builders.program import TensorType

ANY = 0
"""The bucket of kernels that serve any number of rows."""

_INTEGERS: Mapping[str, Mapping[int, str]] = {
    "fused.rotate_and_write": {5: "positions", 6: "sequences", 7: "block_table"},
    "fused.attend": {3: "positions", 4: "sequences", 5: "lengths", 6: "block_table"},
}
"""Which arguments say where tokens are, by their place."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a site is timed with: a batch in the middle of its life, or one prompt."""

    tokens: int
    batch: int
    context: int
    """Tokens of every sequence in the cache after the step."""

    @staticmethod
    def of(rows: int, limits: Limits) -> Load:
        """A batch of so many rows; for any number of rows, the longest prompt up to a bound."""
        if rows == ANY:
            longest = min(limits.max_input_len, limits.max_num_tokens, 2048)
            return Load(tokens=longest, batch=1, context=longest)
        return Load(tokens=rows, batch=rows, context=max(1, min(limits.max_seq_len // 2, 1024)))


def example(site: Site, load: Load, device: str) -> list[Any]:
    """Arguments of the site's operator."""
    sizes = _sizes(site, load)
    args = [_example(arg, sizes, device) for arg in site.args]
    if device != "meta":
        for place, name in _INTEGERS.get(site.op, {}).items():
            args[place].copy_(_integers(name, load, sizes))
    return args


def _sizes(site: Site, load: Load) -> dict[str, int]:
    table = 1
    for arg in site.args:
        if isinstance(arg, TensorType) and "blocks" in arg.shape[:1]:
            table = -(-load.context // int(arg.shape[1]))
    return {
        "tokens": load.tokens,
        "wanted": load.tokens,
        "batch": load.batch,
        "table": table,
        "blocks": load.batch * table,
    }


def _example(arg: Any, sizes: Mapping[str, int], device: str) -> Any:
    if not isinstance(arg, TensorType):
        return arg
    shape = [sizes[size] if size in sizes else int(size) for size in arg.shape]
    dtype = getattr(torch, arg.dtype)
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype, device=device)
    if device == "meta":
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.empty(shape, dtype=dtype, device=device).normal_(std=0.05)


def _integers(name: str, load: Load, sizes: Mapping[str, int]) -> Tensor:
    if name == "block_table":
        return torch.arange(sizes["blocks"]).view(load.batch, sizes["table"])
    if name == "lengths":
        return torch.full((load.batch,), load.context)
    if load.tokens > load.batch:
        return torch.arange(load.tokens) if name == "positions" else torch.zeros(load.tokens)
    return torch.full((load.tokens,), load.context - 1) if name == "positions" else torch.arange(load.tokens)


@dataclass(frozen=True)
class PromptTiles:
    """The tiles of a load that is one prompt, of any height."""

    load: Load
    device: str

    def __call__(self, rows: int) -> Tensor:
        load = self.load
        chunk = Chunk(sequence=0, first=0, tokens=load.tokens, position=load.context - load.tokens)
        return torch.tensor(tile_table([chunk], rows), dtype=torch.int32, device=self.device)
