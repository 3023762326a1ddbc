"""One rank on a CUDA device: decoding steps are CUDA graphs, other steps run launch by launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from builders.cuda.executor import Context
from builders.cuda.steps import Buffers, Tiles, graph_sizes, is_decoding, there, to_device
from builders.engine import TorchEngine
from builders.kernels.call import Config
from builders.kernels.draw import Wishes, draw
from builders.kernels.likeliest import likeliest
from builders.kernels.reduce import PeerBuffers
from builders.limits import Limits
from builders.ops import Step

Before = Callable[[Tensor], Tensor]
"""Gives the input of decoding sequences from their rows of the table."""
After = Callable[[Tensor, Tensor], object]
"""Takes their outputs and rows."""


class CudaEngine:
    """A rank whose programs launch kernels.

    Steps are read on the host, so their tensors should be there; x may be anywhere. The caches have one
    block more than requests may use: the last, for padding. What `forward` gives lasts until the next call.

    A caller may keep its sequences' blocks in `table` (`set_blocks`), and give steps that name rows of it.
    """

    def __init__(
        self,
        ranks_programs: TorchEngine,
        context: Context,
        limits: Limits,
        x: Tensor,
        *,
        trash: int,
        sequences: int | None = None,
        draws: bool = False,
        finding: Config | None = None,
    ) -> None:
        self._programs, self._context = ranks_programs, context
        self._device, self._most = str(x.device), len(x)
        self._buffers = Buffers(
            limits, x, sequences=sequences or self._most, trash=trash, device=self._device
        )
        self.draws = draws
        """Whether there is a kernel for `draw`; older engines have none."""
        self.finding = finding
        """The kernels for `likeliest`; older engines have none."""
        self._graphs: dict[int, Callable[[], Tensor]] = {}
        self._before: Before | None = None
        self._after: After | None = None

    @property
    def table(self) -> Tensor:
        """[sequences + 1, blocks] on the device; the last row is for padding."""
        return self._buffers.table

    def set_blocks(self, sequences: Tensor, blocks: Tensor) -> None:
        """Whole rows of the table."""
        with self._on_device():
            rows = there(sequences, self._device)
            self.table.index_copy_(0, rows, there(blocks, self._device))

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        with self._on_device():
            self._programs.copy_blocks(copies)

    def join(self, peers: PeerBuffers) -> None:
        """Small sums over ranks are kernels from now on, in all of the ranks; before `prepare`."""
        self._context.launch = replace(self._context.launch, peers=peers)

    def draw(
        self, scores: Tensor, slots: Tensor, positions: Tensor, wishes: Wishes, *, scaled: bool
    ) -> Tensor:
        """Tokens [R]; see `builders.kernels.draw`."""
        out = torch.empty_like(slots)
        with self._on_device():
            self._context.runner(draw(scores.contiguous(), slots, positions, wishes, out=out, scaled=scaled))
        return out

    def likeliest(self, scores: Tensor) -> Tensor:
        """Tokens [R]; see `builders.kernels.likeliest`."""
        assert self.finding, "an engine that has kernels for it"
        out = torch.empty(len(scores), dtype=torch.int64, device=scores.device)
        with self._on_device():
            self._context.runner(likeliest(scores, out=out, config=self.finding))
        return out

    def prepare(
        self, sizes: Sequence[int] = (), *, before: Before | None = None, after: After | None = None
    ) -> None:
        """Capture decoding steps, of every size unless told; the largest first: the others fit its memory.

        With `before` and `after`, which are captured too, all decoding goes through `decode`.
        """
        self._before, self._after = before, after
        with self._on_device():
            pool = None
            self._buffers.clear()
            for size in sorted(sizes or graph_sizes(self._most), reverse=True):
                graph, out = self._captured(size, pool)
                pool = pool or graph.pool()
                self._graphs[size] = _replay(graph, out)

    def close(self) -> None:
        """Let go of the graphs, and of what they call, which may hold this engine."""
        self._graphs.clear()
        self._before = self._after = None

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """See `builders.engine.Engine`. Tensors in pinned memory must not change before the step is done."""
        hooked = self._before or self._after
        if not hooked and len(step.positions) <= self._most and is_decoding(step):
            return self.decode(step, x)
        with self._on_device():
            tiles = Tiles(step, self._device, most=self._most)
            prompts = tiles if tiles.alone < len(step.positions) else None
            self._context.launch = replace(self._context.launch, tiles=prompts, recorded={})
            return self._programs.forward(there(x, self._device), to_device(step, self._device))

    def decode(self, step: Step, x: Tensor | None = None) -> Tensor:
        """A step of one token of every sequence; where `before` gives the tokens, x does not."""
        batch = len(step.positions)
        size = min((size for size in self._graphs if size >= batch), default=batch)
        with self._on_device():
            self._buffers.fill(x, step)
            run = self._graphs.get(size)
            return (run() if run else self._run(size))[:batch]

    def _on_device(self) -> AbstractContextManager[None]:
        """Of several, and in whatever thread."""
        return torch.cuda.device(self._device) if self._device.startswith("cuda") else nullcontext()

    def _run(self, size: int) -> Tensor:
        self._context.launch = replace(self._context.launch, tiles=None, recorded={})
        x, step = self._buffers.front(size)
        out = self._programs.forward(self._before(step.sequences) if self._before else x, step)
        if self._after:
            self._after(out, step.sequences)
        return out

    def _captured(self, size: int, pool: Any) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._run(size)  # what is loaded or allocated on a first run cannot be captured
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            out = self._run(size)
        return graph, out


def _replay(graph: torch.cuda.CUDAGraph, out: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        graph.replay()
        return out

    return run
