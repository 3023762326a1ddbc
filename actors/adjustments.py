"""What changes scores before a choice: penalties for what was said, biases, ends that come too early.

All of it is kept by slot on the device. A tensor that grows moves; `layout` then counts up, and graphs that
were captured before must be captured again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Additions:
    """For every slot, numbers to add to the scores of some tokens. Slots hold as many as the longest."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self.layout = 0
        # A padding adds 0 to token 0.
        self._tokens = torch.zeros(slots, 0, dtype=torch.int64, device=device)
        self._values = torch.zeros(slots, 0, device=device)

    def put(self, slot: int, added: Mapping[int, float]) -> None:
        self._reserve(len(added))
        spare = self._tokens.shape[1] - len(added)
        tokens, values = [*added, *[0] * spare], [*added.values(), *[0.0] * spare]
        self._tokens[slot].copy_(torch.tensor(tokens, dtype=torch.int64), non_blocking=True)
        self._values[slot].copy_(torch.tensor(values, dtype=torch.float32), non_blocking=True)

    def _reserve(self, width: int) -> None:
        more = width - self._tokens.shape[1]
        if more > 0:
            more = (1 << (width - 1).bit_length()) - self._tokens.shape[1]
            self._tokens = torch.nn.functional.pad(self._tokens, (0, more))
            self._values = torch.nn.functional.pad(self._values, (0, more))
            self.layout += 1

    def added(self, scores: Tensor, slots: Tensor, where: Tensor | None = None) -> Tensor:
        """scores [R, V] plus the numbers of these slots [R], in the rows where `where` [R] is true."""
        values = self._values[slots]
        if where is not None:
            values = values.masked_fill(~where[:, None], 0)
        return scores.scatter_add(1, self._tokens[slots], values)


class Spoken:
    """How often a text has every token, and which ones its prompt has, for slots with penalties only.

    Row 0 is for all slots without: penalties that change nothing read it.
    """

    def __init__(self, slots: int, vocab_size: int, device: torch.device) -> None:
        self.layout = 0
        self._vocab_size = vocab_size
        self._row = torch.zeros(slots, dtype=torch.int64, device=device)
        self._counts = torch.zeros(1, vocab_size, dtype=torch.int32, device=device)
        self._prompts = torch.zeros(1, vocab_size, dtype=torch.bool, device=device)
        self._free: list[int] = []
        self._taken: dict[int, int] = {}

    def reserve(self, rows: int) -> None:
        """Have room for so many slots with penalties at once."""
        old = self._counts.shape[0]
        more = rows + 1 - old
        if more > 0:
            self._counts = torch.nn.functional.pad(self._counts, (0, 0, 0, more))
            self._prompts = torch.nn.functional.pad(self._prompts, (0, 0, 0, more))
            self._free.extend(range(old, old + more))
            self.layout += 1

    def open(self, slot: int, prompt: Sequence[int], text: Sequence[int]) -> None:
        if not self._free:
            self.reserve(max(4, 2 * len(self._taken)))
        row = self._taken[slot] = self._free.pop()
        self._row[slot] = row
        self._counts[row] = 0
        self._prompts[row] = False
        self._prompts[row].index_fill_(0, self._ids(prompt), True)
        said = self._ids(text)
        self._counts[row].scatter_add_(0, said, torch.ones_like(said, dtype=torch.int32))

    def _ids(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor(tokens, dtype=torch.int64).to(self._row.device, non_blocking=True)

    def close(self, slot: int) -> None:
        if slot in self._taken:
            self._free.append(self._taken.pop(slot))
            self._row[slot] = 0

    def count(self, slots: Tensor, tokens: Tensor) -> None:
        """These tokens [R] have been said in these slots [R]."""
        places = self._row[slots] * self._vocab_size + tokens
        self._counts.view(-1).scatter_add_(0, places, torch.ones_like(places, dtype=torch.int32))

    def copy(self, sources: Tensor, targets: Tensor) -> None:
        """What was said in the source slots has been said in the targets, all at once."""
        rows = self._row[targets]
        self._counts[rows] = self._counts[self._row[sources]]
        self._prompts[rows] = self._prompts[self._row[sources]]

    def penalized(self, scores: Tensor, slots: Tensor, penalties: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Scores [R, V] less repetition (as Transformers has it), presence and frequency (as OpenAI's)."""
        repetition, presence, frequency = (penalty[:, None] for penalty in penalties)
        rows = self._row[slots]
        counts = self._counts[rows]
        said = counts > 0
        known = said | self._prompts[rows]
        scores = torch.where(known, torch.where(scores < 0, scores * repetition, scores / repetition), scores)
        return scores - counts * frequency - said * presence
