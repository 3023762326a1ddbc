"""Steps as a device takes them: decoding ones in buffers that graphs read, others cut into tiles."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from builders.kernels.attention import Chunk, tile_table
from builders.limits import Limits
from builders.ops import Step


def graph_sizes(most: int) -> list[int]:
    """Batches that have a graph: powers of two below the largest, and the largest."""
    powers = (1 << power for power in range(most.bit_length()))
    return [*(size for size in powers if size < most), most]


def is_decoding(step: Step) -> bool:
    """Whether every sequence has one token, in order, and all are wanted: then a graph will do."""
    rows = torch.arange(len(step.lengths))
    return torch.equal(step.sequences, rows) and torch.equal(step.wanted, rows)


class Buffers:
    """A decoding step at fixed addresses.

    Rows beyond the batch are sequences of one token in a block of the cache that nobody owns.
    """

    def __init__(self, limits: Limits, x: Tensor, *, trash: int, device: str) -> None:
        size, table = len(x), -(-limits.max_seq_len // limits.tokens_per_block)
        zeros = torch.zeros(size, dtype=torch.int64, device=device)
        self.x, self._trash = x, trash
        self._step = Step(
            positions=zeros.clone(),
            sequences=torch.arange(size, device=device),
            lengths=zeros + 1,
            block_table=torch.full((size, table), trash, device=device),
            wanted=torch.arange(size, device=device),
        )

    def clear(self) -> None:
        """Nothing but padding: what was there may belong to others by now."""
        self._step.positions.zero_()
        self._step.lengths.fill_(1)
        self._step.block_table.fill_(self._trash)

    def fill(self, x: Tensor, step: Step, size: int) -> None:
        """Take in a step of at most `size` sequences."""
        batch, table = step.block_table.shape
        held = self._step
        self.x[:batch].copy_(x, non_blocking=True)
        for mine, given, padding in (
            (held.positions, step.positions, 0),
            (held.lengths, step.lengths, 1),
        ):
            mine[:batch].copy_(given, non_blocking=True)
            mine[batch:size].fill_(padding)
        held.block_table[:batch, :table].copy_(step.block_table, non_blocking=True)
        held.block_table[batch:size].fill_(self._trash)

    def front(self, size: int) -> tuple[Tensor, Step]:
        """The first rows of everything, as graphs of that size read them."""
        return self.x[:size], Step(**{name: value[:size] for name, value in vars(self._step).items()})


class Tiles:
    """How a step's prompts are cut, for any height of tile; all layers share a table."""

    def __init__(self, step: Step, device: str) -> None:
        self._chunks, self._device = list(_chunks(step)), device
        self._made: dict[int, Tensor] = {}

    def __call__(self, rows: int) -> Tensor:
        """[n, 3]"""
        if rows not in self._made:
            table = tile_table(self._chunks, rows)
            self._made[rows] = torch.tensor(table, dtype=torch.int32, device=self._device)
        return self._made[rows]


def _chunks(step: Step) -> Iterator[Chunk]:
    """Tokens of one sequence lie side by side."""
    sequences, counts = torch.unique_consecutive(step.sequences, return_counts=True)
    first = 0
    for sequence, tokens in zip(sequences.tolist(), counts.tolist(), strict=True):
        yield Chunk(sequence=sequence, first=first, tokens=tokens, position=int(step.positions[first]))
        first += tokens


def to_device(step: Step, device: str) -> Step:
    """The step's tensors on the device, dense: kernels know the stride of a row alone."""
    return Step(
        **{name: value.to(device, non_blocking=True).contiguous() for name, value in vars(step).items()}
    )
