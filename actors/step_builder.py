"""Steps for an engine from plans, on the CPU: what a rank keeps of every slot, and arrays made from it.

A step in which sequences only decode costs a few operations on whole arrays, however many they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.messages import Chunk, StepPlan
from builders.limits import Limits
from builders.ops import Step

Integers = NDArray[np.int64]

_NONE = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Rows of logits, one after another, by which tokens of a prompt are to be judged."""

    slot: int
    first: int
    """The first of these rows."""
    following: Tensor
    """[n] For each of these rows, the token of the prompt that it gives the likelihood of."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A step, and whose it is. All tensors are new: they may still be read when the next one is made."""

    step: Step
    tokens: Tensor
    """[T] What the host knows; the first are of sequences that decode, whose tokens only the device knows."""
    num_decoding: int
    """So many of the first rows take the token that their slot sampled last."""
    is_decoding: bool
    """Every sequence computes and samples one token."""
    slots: Tensor
    """[B] Of each sequence."""
    sampled: Tensor
    """[S] Slots that sample, one for each of the first rows of logits; the rows after these only score."""
    scored: tuple[Scored, ...] = ()
    """Of every scored chunk that has such rows."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Several known tokens of one slot."""

    slot: int
    start: int
    tokens: Integers
    wanted: tuple[int, ...]
    """Which of them give a row of logits each."""
    sampled: tuple[int, ...]
    """The slot of each such row."""
    following: Integers
    """What follows its first tokens, whose rows of logits score."""


class StepBuilder:
    """What a rank knows of its slots, from plans alone.

    Where the engine keeps a table of all slots' blocks, a step's sequences are slots, and `changed` has the
    rows of the table that are new.
    """

    def __init__(self, limits: Limits, *, lanes: int = 1, table: Tensor | None = None) -> None:
        slots, self._block = lanes * limits.max_sequences, limits.tokens_per_block
        self._table = np.zeros((slots, -(-limits.max_seq_len // self._block)), dtype=np.int64)
        self._tokens = np.zeros((slots, limits.max_seq_len), dtype=np.int32)
        self._next = np.zeros(slots, dtype=np.int64)
        """Where each slot's next token goes, if it decodes."""
        self._decode: tuple[bytes, Integers] = b"", np.zeros(0, dtype=np.int64)
        """The last set of slots that decoded, as the plan had it and as numbers."""
        self._engines_table = table
        self._changed: set[int] = set()

    def build(self, plan: StepPlan) -> Batch:
        """The plan's step; plans come in order, none left out."""
        self._take_in(plan)
        rows = self._decoding(plan.decode)
        positions = self._next[rows]
        self._next[rows] += 1
        if plan.runs or plan.chunks:
            return self._mixed(rows, positions, [*_runs(plan), *self._chunks(plan)])
        every = torch.arange(len(rows))
        slots = torch.from_numpy(rows.copy())
        step = Step(
            positions=torch.from_numpy(positions),
            sequences=every if self._engines_table is None else slots,
            lengths=torch.from_numpy(positions + 1),
            block_table=self._tables(rows, positions + 1),
            wanted=every,
        )
        return Batch(
            step=step,
            tokens=torch.zeros_like(every),
            num_decoding=len(rows),
            is_decoding=True,
            slots=slots,
            sampled=slots,
        )

    def changed(self) -> tuple[Tensor, Tensor] | None:
        """Slots whose blocks have changed since this was asked last, and all their blocks."""
        if not self._changed:
            return None
        slots = np.array(sorted(self._changed))
        self._changed.clear()
        return torch.from_numpy(slots), torch.from_numpy(self._table[slots])

    def _take_in(self, plan: StepPlan) -> None:
        self._changed.update(one.slot for one in plan.admitted)
        self._changed.update(one.slot for one in plan.assigned)
        self._changed.update(fork.target for fork in plan.forks)
        for one in plan.admitted:
            known = np.frombuffer(one.tokens, dtype=np.int32)
            self._tokens[one.slot, : len(known)] = known
            self._table[one.slot, : len(one.blocks)] = one.blocks
        for fork in plan.forks:
            self._table[fork.target] = self._table[fork.source]
            self._tokens[fork.target] = self._tokens[fork.source]
        for new in plan.assigned:
            self._table[new.slot, new.first : new.first + len(new.blocks)] = new.blocks

    def _decoding(self, bits: bytes) -> Integers:
        if bits != self._decode[0]:
            flags = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), bitorder="little")
            self._decode = bits, np.flatnonzero(flags)
        return self._decode[1]

    def _tables(self, rows: Integers, lengths: Integers) -> Tensor:
        """No wider than the longest needs."""
        if self._engines_table is not None:
            return self._engines_table
        width = -(-int(lengths.max()) // self._block)
        return torch.from_numpy(self._table[rows, :width])

    def _chunks(self, plan: StepPlan) -> Iterable[_Piece]:
        for chunk in plan.chunks:
            tokens = self._tokens[chunk.slot, chunk.start : chunk.start + chunk.count].astype(np.int64)
            wanted = (chunk.count - 1,) * len(chunk.sampled)
            self._next[list(chunk.sampled)] = chunk.start + chunk.count
            following = self._following(chunk) if chunk.scored else _NONE
            yield _Piece(chunk.slot, chunk.start, tokens, wanted, chunk.sampled, following)

    def _following(self, chunk: Chunk) -> Integers:
        """The prompt ends where a slot samples."""
        end = chunk.start + chunk.count - bool(chunk.sampled)
        return self._tokens[chunk.slot, chunk.start + 1 : end + 1].astype(np.int64)

    def _mixed(self, rows: Integers, positions: Integers, pieces: list[_Piece]) -> Batch:
        """Sequences that decode, then those with several tokens."""
        decoding = len(rows)
        counts = np.array([len(piece.tokens) for piece in pieces])
        starts = np.array([piece.start for piece in pieces])
        firsts = decoding + np.cumsum(counts) - counts
        slots = np.concatenate([rows, [piece.slot for piece in pieces]])
        lengths = np.concatenate([positions + 1, starts + counts])
        inside = np.arange(counts.sum()) - np.repeat(firsts - decoding, counts)
        wanted = [
            first + place for first, piece in zip(firsts, pieces, strict=True) for place in piece.wanted
        ]
        sampled = [slot for piece in pieces for slot in piece.sampled]
        scored = _scored(pieces, decoding + len(sampled))
        wanted += [
            first + place
            for first, piece in zip(firsts, pieces, strict=True)
            for place in range(len(piece.following))
        ]
        sequences = np.concatenate(
            [np.arange(decoding), np.repeat(decoding + np.arange(len(pieces)), counts)]
        )
        if self._engines_table is not None:
            sequences = slots[sequences]
        step = Step(
            positions=torch.from_numpy(np.concatenate([positions, np.repeat(starts, counts) + inside])),
            sequences=torch.from_numpy(sequences),
            lengths=torch.from_numpy(lengths),
            block_table=self._tables(slots, lengths),
            wanted=torch.from_numpy(np.concatenate([np.arange(decoding), wanted]).astype(np.int64)),
        )
        known = np.concatenate([np.zeros(decoding, dtype=np.int64), *(piece.tokens for piece in pieces)])
        return Batch(
            step=step,
            tokens=torch.from_numpy(known),
            num_decoding=decoding,
            is_decoding=all(len(one.tokens) == 1 and one.sampled == (one.slot,) for one in pieces),
            slots=torch.from_numpy(slots),
            sampled=torch.from_numpy(np.concatenate([rows, sampled]).astype(np.int64)),
            scored=scored,
        )


def _scored(pieces: list[_Piece], first: int) -> tuple[Scored, ...]:
    """Whose rows come one after another, from this one on."""
    found = []
    for piece in pieces:
        if len(piece.following):
            found.append(Scored(slot=piece.slot, first=first, following=torch.from_numpy(piece.following)))
            first += len(piece.following)
    return tuple(found)


def _runs(plan: StepPlan) -> Iterable[_Piece]:
    for run in plan.runs:
        places = tuple(range(len(run.tokens)))
        tokens = np.array(run.tokens, dtype=np.int64)
        yield _Piece(run.slot, run.start, tokens, places, (run.slot,) * len(places), _NONE)
