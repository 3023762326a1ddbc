"""Several ranks of one checkpoint, in lockstep in one process, with collectives that really happen."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import torch
from torch import Tensor

from builders.checkpoint import load_rank, read_manifest
from builders.decoder import Decoder
from builders.ops import LayerCache, Step, tensor_parallel
from builders.parallel import parallelize

BLOCK = 4
"""Tokens per cache block: small, so that every sequence spans several."""


class ThreadGroup:
    """The ranks of a tensor parallel group as threads that wait for each other."""

    def __init__(self, size: int) -> None:
        self._slots: list[Tensor] = [torch.empty(0)] * size
        self._barrier = threading.Barrier(size, timeout=60)

    def member(self, index: int) -> Member:
        return Member(self, index)

    def join(self, index: int, x: Tensor, combine: Callable[[list[Tensor]], Tensor]) -> Tensor:
        """Nobody leaves before everybody has read: a rank may overwrite what it gave right after."""
        self._slots[index] = x
        self._barrier.wait()
        joined = combine(self._slots)
        self._barrier.wait()
        return joined


class Member:
    """One rank's end of a group: a `builders.ops.Communicator`."""

    def __init__(self, group: ThreadGroup, index: int) -> None:
        self._group, self._index = group, index

    def all_reduce(self, x: Tensor) -> Tensor:
        return self._group.join(self._index, x, lambda parts: torch.stack(parts).sum(0))

    def all_gather(self, x: Tensor) -> Tensor:
        return self._group.join(self._index, x, lambda parts: torch.cat(parts, dim=-1))


class Ranks:
    """Every rank of a checkpoint: tokens in, logits out, with a paged cache."""

    def __init__(self, folder: Path, batch: int, max_len: int) -> None:
        self.mapping = read_manifest(folder).mapping
        self.stages, self.caches = [], []
        blocks = -(-max_len // BLOCK)
        for stage in range(self.mapping.pp_size):
            group = ThreadGroup(self.mapping.tp_size)
            ranks = [
                load_rank(folder, stage * self.mapping.tp_size + tp) for tp in range(self.mapping.tp_size)
            ]
            for tp, decoder in enumerate(ranks):
                parallelize(decoder, self.mapping, self.mapping.place(tp))
            self.stages.append([(decoder, group.member(tp)) for tp, decoder in enumerate(ranks)])
            self.caches.append([decoder.new_caches(batch * blocks, BLOCK) for decoder in ranks])
        # Blocks of different sequences interleave, so a wrong block table cannot go unnoticed.
        self.block_table = torch.arange(batch * blocks).view(blocks, batch).t().contiguous()
        self.pool = ThreadPoolExecutor(self.mapping.tp_size)

    def forward(self, ids: Tensor, start: int) -> Tensor:
        """ids [B, L] at positions start… to logits [B, L, vocabulary]."""
        batch, length = ids.shape
        step = Step(
            positions=torch.arange(start, start + length).repeat(batch),
            sequences=torch.arange(batch).repeat_interleave(length),
            lengths=torch.full((batch,), start + length),
            block_table=self.block_table,
            wanted=torch.arange(batch * length),
        )
        x = ids.flatten()
        for ranks, caches in zip(self.stages, self.caches, strict=True):
            outputs = self.pool.map(_run, ranks, caches, repeat((x, step)))
            x = same(list(outputs))
        return x.view(batch, length, -1)

    def greedy(self, prompt: Tensor, num_tokens: int) -> Tensor:
        """The prompt [B, L] continued by `num_tokens`."""
        ids, logits = prompt, self.forward(prompt, 0)
        for _ in range(num_tokens):
            ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
            logits = self.forward(ids[:, -1:], ids.shape[1] - 1)
        return ids


def _run(rank: tuple[Decoder, Member], caches: list[LayerCache], inputs: tuple[Tensor, Step]) -> Tensor:
    decoder, member = rank
    with tensor_parallel(member):
        return decoder(*inputs, caches)  # type: ignore[no-any-return]


def same(outputs: list[Tensor]) -> Tensor:
    """What all ranks agree on."""
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=0, atol=0)
    return outputs[0]
