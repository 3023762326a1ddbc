"""One rank on a CUDA device: decoding steps are CUDA graphs, other steps run launch by launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from builders.cuda.executor import Context
from builders.cuda.steps import Buffers, Tiles, graph_sizes, is_decoding, to_device
from builders.engine import TorchEngine
from builders.limits import Limits
from builders.ops import Step


class CudaEngine:
    """A rank whose programs launch kernels.

    Steps are read on the host, so their tensors should be there; x may be anywhere. The caches have one
    block more than requests may use: the last, for padding. What `forward` gives lasts until the next call.
    """

    def __init__(
        self, ranks_programs: TorchEngine, context: Context, limits: Limits, x: Tensor, *, trash: int
    ) -> None:
        self._programs, self._context = ranks_programs, context
        self._device, self._most = str(x.device), len(x)
        self._buffers = Buffers(limits, x, trash=trash, device=self._device)
        self._graphs: dict[int, Callable[[], Tensor]] = {}

    def prepare(self, sizes: Sequence[int] = ()) -> None:
        """Capture decoding steps, of every size unless told; the largest first: the others fit its memory."""
        pool = None
        self._buffers.clear()
        for size in sorted(sizes or graph_sizes(self._most), reverse=True):
            graph, out = self._captured(size, pool)
            pool = pool or graph.pool()
            self._graphs[size] = _replay(graph, out)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """See `builders.engine.Engine`. Tensors in pinned memory must not change before the step is done."""
        if not self._device.startswith("cuda"):
            return self._forward(x, step)
        with torch.cuda.device(self._device):  # of several, and in whatever thread
            return self._forward(x, step)

    def _forward(self, x: Tensor, step: Step) -> Tensor:
        batch = len(step.lengths)
        if len(step.positions) == batch <= self._most and is_decoding(step):
            return self._decoded(x, step, batch)
        tiles = Tiles(step, self._device)
        self._context.launch = replace(self._context.launch, tiles=tiles)
        return self._programs.forward(x.to(self._device).contiguous(), to_device(step, self._device))

    def _decoded(self, x: Tensor, step: Step, batch: int) -> Tensor:
        size = min((size for size in self._graphs if size >= batch), default=batch)
        self._buffers.fill(x, step, size)
        run = self._graphs.get(size)
        return (run() if run else self._run(size))[:batch]

    def _run(self, size: int) -> Tensor:
        self._context.launch = replace(self._context.launch, tiles=None)
        return self._programs.forward(*self._buffers.front(size))

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
