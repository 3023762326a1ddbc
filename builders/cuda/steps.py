"""Steps as a device takes them: decoding ones in buffers that graphs read, others cut into tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    """Whether every sequence has one token and all are wanted: then a graph will do."""
    rows, sequences = len(step.positions), step.sequences.tolist()
    return len(set(sequences)) == rows and torch.equal(step.wanted, torch.arange(rows))


class Buffers:
    """A decoding step at fixed addresses: for every token its place and its sequence's row of the table.

    The table's last row is for padding: sequences of one token in a block of the cache that nobody owns.
    """

    def __init__(self, limits: Limits, x: Tensor, *, sequences: int, trash: int, device: str) -> None:
        blocks = -(-limits.max_seq_len // limits.tokens_per_block)
        self.x, self._nobody, self._trash = x, sequences, trash
        self.table = torch.full((sequences + 1, blocks), trash, device=device)
        self._places = torch.empty(2, len(x) + len(x) % 2, dtype=torch.int64, device=device)
        self._every = torch.arange(len(x), device=device)
        self.clear()

    def clear(self) -> None:
        """Nothing but padding: what was there may belong to others by now."""
        self._places[0] = 0
        self._places[1] = self._nobody
        self.table.fill_(self._trash)

    def fill(self, x: Tensor | None, step: Step) -> None:
        """Take in a step, and its table unless that is this one."""
        batch = len(step.positions)
        places = torch.zeros(self._places.shape, dtype=torch.int64)
        places[0, :batch] = step.positions
        places[1, :batch] = step.sequences
        places[1, batch:] = self._nobody
        copy_in(places, self._places)
        if x is not None:
            copy_in(x, self.x[:batch])
        if step.block_table is not self.table:
            rows, blocks = step.block_table.shape
            self.table[:rows, :blocks].copy_(step.block_table, non_blocking=True)

    def front(self, size: int) -> tuple[Tensor, Step]:
        """The first rows of everything, as graphs of that size read them."""
        positions, sequences = self._places[:, :size]
        step = Step(
            positions=positions,
            sequences=sequences,
            lengths=positions,  # which no kernel reads: each token's place says how far it sees
            block_table=self.table,
            wanted=self._every[:size],
        )
        return self.x[:size], step


class Tiles:
    """How a step's prompts are cut, for any height of tile; all layers share a table.

    Tokens in front that are alone in their sequences, `most` of them at most, are in no tile.
    """

    def __init__(self, step: Step, device: str, *, most: int) -> None:
        chunks = list(_chunks(step))
        self.alone = _alone(chunks[:most])
        self._chunks, self._device = chunks[self.alone :], device
        self.made: dict[int, Tensor] = {}

    def __call__(self, rows: int) -> Tensor:
        """[n, 5] of int32: see `tile_table`."""
        if rows not in self.made:
            table = tile_table(self._chunks, rows)
            self.made[rows] = there(torch.tensor(table, dtype=torch.int32), self._device)
        return self.made[rows]


def _chunks(step: Step) -> Iterator[Chunk]:
    """Tokens of one sequence lie side by side."""
    sequences, counts = torch.unique_consecutive(step.sequences, return_counts=True)
    first = 0
    for sequence, tokens in zip(sequences.tolist(), counts.tolist(), strict=True):
        yield Chunk(sequence=sequence, first=first, tokens=tokens, position=int(step.positions[first]))
        first += tokens


def _alone(chunks: Sequence[Chunk]) -> int:
    """How many are of one token each, before the first of several."""
    return next((count for count, chunk in enumerate(chunks) if chunk.tokens > 1), len(chunks))


def to_device(step: Step, device: str) -> Step:
    """The step's tensors on the device."""
    return Step(**{name: there(value, device) for name, value in vars(step).items()})


def there(x: Tensor, device: str | torch.device) -> Tensor:
    """On the device, dense: kernels know the stride of a row alone. Nothing waits for the copy."""
    return _pinned(x, torch.device(device)).to(device, non_blocking=True).contiguous()


def copy_in(x: Tensor, out: Tensor) -> None:
    """To where it is read, without waiting."""
    out.copy_(_pinned(x, out.device), non_blocking=True)


def _pinned(x: Tensor, device: torch.device) -> Tensor:
    """Memory that a device reads by itself; PyTorch gives it to nobody else before that is done."""
    return x.contiguous().pin_memory() if device.type == "cuda" and x.device.type == "cpu" else x
