"""How a step becomes executions of a plan: plain data, decided on the host.

A plan runs consecutive slots with the same number of tokens in each. A prompt is one slot, cut after
every token whose logits are wanted, since an execution gives one row of logits a slot. Sequences with
one token run together; slots between them that are not in the step run along with a token that does no
harm: it is written where their next token will be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from builders.ops import Step

IDLE = -1
"""In place of a token's number in the step."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One slot's part of an execution."""

    slot: int
    tokens: tuple[int, ...]
    """Numbers in the packed step."""
    start: int
    """The first token's position."""
    reached: int
    """Tokens in the slot after the whole step, as Step.lengths."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One execution."""

    rows: tuple[Row, ...]

    @property
    def first_slot(self) -> int:
        return self.rows[0].slot

    @property
    def sizes(self) -> tuple[int, int]:
        """Sequences, and tokens of each."""
        return len(self.rows), len(self.rows[0].tokens)

    @property
    def tokens(self) -> list[int]:
        """[B · S]"""
        return [token for row in self.rows for token in row.tokens]

    def inputs(self) -> dict[str, Tensor]:
        """What the network is told of the step, but for the tokens themselves."""
        batch, tokens = self.sizes
        starts = torch.tensor([row.start for row in self.rows], dtype=torch.int32)
        return {
            "positions": starts[:, None] + torch.arange(tokens, dtype=torch.int32),
            "starts": starts,
            "lengths": torch.tensor([row.reached for row in self.rows], dtype=torch.int32),
            "wanted": torch.arange(1, batch + 1, dtype=torch.int32) * tokens - 1,
        }


def batches_of(step: Step, lengths: list[int], slot_size: int, most_tokens: int) -> list[Batch]:
    """Prompts first, each by itself, then everything that is one token long.

    `lengths` holds the tokens of every slot and is brought up to date.
    """
    sequences = list(_sequences(step))
    wanted = set(step.wanted.tolist())
    prompts = [
        Batch(rows=(piece,))
        for row in sequences
        if len(row.tokens) > 1
        for piece in _pieces(row, wanted, most_tokens)
    ]
    for row in sequences:
        lengths[row.slot] = row.start + len(row.tokens)
    singles = {row.slot: row for row in sequences if len(row.tokens) == 1}
    if not singles:
        return prompts
    slots = range(min(singles), max(singles) + 1)
    rows = (singles.get(slot) or _idle(slot, lengths[slot], slot_size) for slot in slots)
    return [*prompts, Batch(rows=tuple(rows))]


def _sequences(step: Step) -> Iterator[Row]:
    positions, owners = step.positions.tolist(), step.sequences.tolist()
    for owner, (reached, table) in enumerate(
        zip(step.lengths.tolist(), step.block_table.tolist(), strict=True)
    ):
        tokens = tuple(token for token, row in enumerate(owners) if row == owner)
        if tokens:
            yield Row(slot=table[0], tokens=tokens, start=positions[tokens[0]], reached=reached)


def _pieces(row: Row, wanted: set[int], most_tokens: int) -> Iterator[Row]:
    """Cut after wanted tokens, and where a piece would be longer than the plan allows."""
    begin = 0
    for index, token in enumerate(row.tokens, start=1):
        if token in wanted or index - begin == most_tokens or index == len(row.tokens):
            yield Row(
                slot=row.slot, tokens=row.tokens[begin:index], start=row.start + begin, reached=row.reached
            )
            begin = index


def _idle(slot: int, length: int, slot_size: int) -> Row:
    start = min(length, slot_size - 1)
    return Row(slot=slot, tokens=(IDLE,), start=start, reached=start + 1)
