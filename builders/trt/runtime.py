"""The execution half: one rank's plan as an Engine. Its device part has not been run.

TensorRT-RTX does not run on data-centre GPUs and the GPUs at hand were of that kind, so what talks to
a device (`device.py`) is complete but unexecuted. Everything else here runs in the tests, with an
interpreter of the network in the device's place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from builders.limits import Limits
from builders.ops import Step
from builders.trt.batches import Batch, batches_of


class Executor(Protocol):
    """Runs a plan; keeps the slots."""

    def run(self, first_slot: int, inputs: Mapping[str, Tensor]) -> Tensor:
        """The only output beside the caches, on the device; valid until the next call."""

    def copy_slot(self, source: int, target: int) -> None:
        """Keys and values."""


def num_slots(limits: Limits) -> int:
    """Sequences whose keys and values an engine keeps."""
    return limits.max_sequences


class TrtEngine:
    """One rank of a model. A step's table of blocks has one column: each sequence's slot.

    Steps are read on the host, so their tensors should be there; x is on the device. Tensor parallel ranks
    are joined by the executor, before the first step.
    """

    def __init__(self, executor: Executor, limits: Limits, *, first: bool, last: bool) -> None:
        self.executor, self._limits = executor, limits
        self._input, self._last = "ids" if first else "hidden", last
        self._lengths = [0] * num_slots(limits)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Token ids [T], or the previous stage's hidden states [T, H], to the wanted tokens' logits
        [R, vocabulary], or to hidden states for the next stage."""
        limits = self._limits
        most_tokens = min(limits.max_input_len, limits.max_num_tokens)
        batches = batches_of(step, self._lengths, limits.max_seq_len, most_tokens)
        # An output lies where the next execution writes its own.
        rows = torch.cat([self._run(x, batch).clone() for batch in batches])
        places = {token: row for row, token in enumerate(t for batch in batches for t in self._tokens(batch))}
        order = step.wanted.tolist() if self._last else range(len(x))
        return rows[torch.tensor([places[token] for token in order], dtype=torch.int64, device=rows.device)]

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        for source, target in copies:
            self.executor.copy_slot(source, target)
            self._lengths[target] = self._lengths[source]

    def _run(self, x: Tensor, batch: Batch) -> Tensor:
        """[B, vocabulary] or [B · S, H]"""
        tokens = torch.tensor(batch.tokens).clamp(min=0).to(x.device)
        inputs = {**batch.inputs(), self._input: x[tokens].unflatten(0, batch.sizes)}
        out = self.executor.run(batch.first_slot, inputs)
        return out if self._last else out.flatten(0, 1)

    def _tokens(self, batch: Batch) -> list[int]:
        """Which token each row of a batch's output is of."""
        return [row.tokens[-1] for row in batch.rows] if self._last else batch.tokens
