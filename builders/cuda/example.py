"""Arguments for a site that nobody has run yet: without storage to compile for, on a device to time with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    "fused.rotate_and_attend": {5: "positions", 6: "sequences", 7: "lengths", 8: "block_table"},
    "fused.attend": {3: "positions", 4: "sequences", 5: "lengths", 6: "block_table"},
}
"""Which arguments say where tokens are, by their place."""


_PROMPT_TOKENS = 4096
"""Of a step with prompts: enough to fill a device several times over."""


_CACHED_TOKENS = 2**18
"""Of a batch: no more than takes memory that a device has to spare."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a site is timed with: a batch in the middle of its life, or prompts of equal length."""

    tokens: int
    batch: int
    context: int
    """Tokens of every sequence in the cache after the step."""

    @property
    def each(self) -> int:
        """Tokens of every sequence in the step."""
        return self.tokens // self.batch

    @staticmethod
    def of(rows: int, limits: Limits) -> Load:
        """A batch of so many rows; for any number of rows, the longest prompts up to a bound."""
        if rows == ANY:
            longest = min(limits.max_input_len, limits.max_num_tokens, 2048)
            batch = max(1, min(limits.max_num_tokens, _PROMPT_TOKENS) // longest)
            return Load(tokens=batch * longest, batch=batch, context=longest)
        context = min(limits.max_seq_len // 4, 4096, _CACHED_TOKENS // rows)
        return Load(tokens=rows, batch=rows, context=max(1, context))


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
    if name == "sequences":
        return torch.arange(load.batch).repeat_interleave(load.each)
    return torch.arange(load.context - load.each, load.context).repeat(load.batch)


@dataclass(frozen=True)
class PromptTiles:
    """The tiles of a load of prompts, of any height."""

    load: Load
    device: str
    made: dict[int, Tensor] = field(default_factory=dict)
    alone: int = 0

    def __call__(self, rows: int) -> Tensor:
        load = self.load
        chunks = [
            Chunk(
                sequence=index, first=index * load.each, tokens=load.each, position=load.context - load.each
            )
            for index in range(load.batch)
        ]
        table = torch.tensor(tile_table(chunks, rows), dtype=torch.int32, device=self.device)
        return self.made.setdefault(rows, table)
