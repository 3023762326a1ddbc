"""fused.all_reduce as a kernel launch, where the ranks reach each other's memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from builders.cuda.example import ANY
from builders.cuda.launch import Kernel, Launch
from builders.cuda.site import Site
from builders.kernels.call import Call, Config
from builders.kernels.reduce import REDUCE_CONFIG, all_reduce, example_buffers, fits
from builders.limits import Limits


class AllReduceKernel(Kernel):
    """One candidate: none can be timed by a rank alone."""

    def buckets(self, limits: Limits) -> Sequence[int]:
        return [ANY]

    def configs(self, site: Site, rows: int, limits: Limits, *, overlap: bool) -> Sequence[Config]:
        return [replace(REDUCE_CONFIG, overlap=overlap)]

    def output(self, args: Sequence[Any]) -> Tensor:
        return torch.empty_like(args[0], memory_format=torch.contiguous_format)

    def takes(self, args: Sequence[Any], launch: Launch) -> bool:
        x, _, residual = args
        whole = x.is_contiguous() and (residual is None or residual.is_contiguous())
        return launch.peers is not None and whole and fits(x, launch.peers)

    def calls(self, config: Config, args: Sequence[Any], out: Tensor, launch: Launch) -> list[Call]:
        x, ranks, residual = args
        if launch.peers is None:
            x = x.new_empty(4)  # to compile for: one kernel serves all sizes
            added = None if residual is None else x
            return all_reduce(x, example_buffers(ranks), config, out=x, residual=added)
        return all_reduce(x, launch.peers, config, out=out, residual=residual)
