"""Mixtral's experts (8 of 14336, 2 per token): one pair at a time, and sorted by expert, beside PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.device import Device, best_of, compiled, cut, normal, sources_of
from builders.kernels import moe
from builders.kernels.call import Call, Config
from builders.kernels.moe import Experts, Routed, Sorted
from builders.kernels.tune import Candidate, GraphTimer, Measured, NoCandidate
from builders.ops import act, route

HIDDEN, WIDTH, EXPERTS, TOP_K = 4096, 14336, 8, 2
TOKENS = (1, 2, 4, 8, 16, 64, 512)
FEW_TOKENS = 16
"""One pair at a time reads the same weights again and again beyond this."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One number of tokens: what goes in and out."""

    x: Tensor
    routed: Routed
    hidden: Tensor
    parts: Tensor
    out: Tensor

    @property
    def touched(self) -> int:
        """How many experts have tokens."""
        return self.routed.chosen.unique().numel()


def bench_moe(device: Device) -> None:
    """All numbers of tokens, few and grouped."""
    experts = Experts(
        up=torch.stack([normal(2 * WIDTH, HIDDEN, deviation=HIDDEN**-0.5) for _ in range(EXPERTS)]),
        down=torch.stack([normal(HIDDEN, WIDTH, deviation=WIDTH**-0.5) for _ in range(EXPERTS)]),
        first=torch.zeros(1, dtype=torch.int64, device="cuda"),
        top_k=TOP_K,
        activation="silu",
        gated=True,
    )
    for tokens in TOKENS:
        work = a_work(tokens)
        num_bytes = 3 * HIDDEN * WIDTH * 2 * work.touched
        print(f"  {tokens:3} tokens, {work.touched} experts", flush=True)
        for name, seconds in ways(device, experts, work, num_bytes):
            rate = num_bytes / seconds
            print(
                f"    {name}: {seconds * 1e6:7.1f} us {rate / 1e9:5.0f} GB/s "
                f"{rate / device.read_bytes_per_s:4.0%} of the limit",
                flush=True,
            )


def a_work(tokens: int) -> Work:
    share, chosen = route(torch.randn(tokens, EXPERTS, device="cuda"), TOP_K, True)
    return Work(
        x=normal(tokens, HIDDEN),
        routed=Routed(share=share.contiguous(), chosen=chosen.int()),
        hidden=normal(tokens * TOP_K, WIDTH),
        parts=normal(tokens * TOP_K, HIDDEN),
        out=normal(tokens, HIDDEN),
    )


def ways(device: Device, experts: Experts, work: Work, num_bytes: int) -> Iterable[tuple[str, float]]:
    """Names and seconds of the whole, each its fastest."""
    if work.x.shape[0] <= FEW_TOKENS:
        yield from few(device, experts, work, num_bytes)
    yield from grouped(device, experts, work, num_bytes)
    timer = GraphTimer(run=lambda _: None, launches=10)
    yield "PyTorch, routing known to the host", timer.graph_seconds(by_expert(experts, work), 1)


def few(device: Device, experts: Experts, work: Work, num_bytes: int) -> Iterable[tuple[str, float]]:
    """One pair at a time."""
    ups = [
        candidate(config, moe.few_up(work.x, experts, work.routed, config, hidden=work.hidden))
        for overlap in device.overlaps
        for config in moe.few_configs(HIDDEN, overlap=overlap)
    ]
    downs = [
        candidate(config, moe.few_down(work.hidden, experts, work.routed, config, out=work.out))
        for overlap in device.overlaps
        for config in moe.few_configs(WIDTH, overlap=overlap)
    ]
    timer = device.timer(compiled(device, sources_of(ups + downs)), num_bytes)
    up, down = both(experts, work, (ups, work.hidden), (downs, work.out), timer)
    yield f"few {cut(up.config)}; {cut(down.config)}", (up.seconds or 0) + (down.seconds or 0)


def both(
    experts: Experts,
    work: Work,
    ups: tuple[list[Candidate], Tensor],
    downs: tuple[list[Candidate], Tensor],
    timer: GraphTimer,
) -> tuple[Measured, Measured]:
    """The fastest up, and the fastest down of what it should make; each with what it writes."""
    hidden, parts = expected(experts, work)
    up = best_of(*ups, hidden, timer)
    work.hidden.copy_(hidden)
    out = (parts.unflatten(0, (-1, TOP_K)) * work.routed.share[..., None]).sum(1)
    down = best_of(*downs, out if downs[1] is work.out else parts, timer)
    if up is None or down is None:
        raise NoCandidate("no candidate is right")
    return up, down


def grouped(device: Device, experts: Experts, work: Work, num_bytes: int) -> Iterable[tuple[str, float]]:
    """Sorted by expert, for every number of rows in a tile."""
    configs = [c for o in device.overlaps for c in moe.grouped_configs(work.routed.pairs, EXPERTS, overlap=o)]
    for rows in sorted({config.blocks["BLOCK_M"] for config in configs}):
        by_expert = an_order(work.routed.pairs, rows)
        cuts = [config for config in configs if config.blocks["BLOCK_M"] == rows]
        around = moe.sort(work.routed, experts, rows, out=by_expert) + moe.combine(
            work.parts, experts, work.routed, moe.COMBINE_CONFIGS[0], out=work.out
        )
        ups = [candidate(c, moe.grouped_up(work.x, experts, by_expert, c, hidden=work.hidden)) for c in cuts]
        downs = [
            candidate(c, moe.grouped_down(work.hidden, experts, by_expert, c, parts=work.parts)) for c in cuts
        ]
        kernels = compiled(device, sources_of(ups + downs) + [call.source for call in around])
        timer = device.timer(kernels, num_bytes)
        kernels.run(around[:1])
        up, down = both(experts, work, (ups, work.hidden), (downs, work.parts), timer)
        seconds = timer([around]) + (up.seconds or 0) + (down.seconds or 0)
        yield f"grouped {cut(up.config)}; {cut(down.config)}", seconds


def an_order(pairs: int, rows: int) -> Sorted:
    shape = (moe.table_rows(pairs, EXPERTS, rows), 3)
    return Sorted(
        order=torch.zeros(pairs, dtype=torch.int32, device="cuda"),
        tiles=torch.zeros(shape, dtype=torch.int32, device="cuda"),
    )


def expected(experts: Experts, work: Work) -> tuple[Tensor, Tensor]:
    """Every pair's hidden values and its part of the result, in float32."""
    hidden, parts = torch.empty_like(work.hidden).float(), torch.empty_like(work.parts).float()
    for expert in range(EXPERTS):
        token, choice = torch.where(work.routed.chosen == expert)
        pair = token * TOP_K + choice
        hidden[pair] = act(F.linear(work.x[token].float(), experts.up[expert].float()), "silu", True)
        parts[pair] = F.linear(hidden[pair], experts.down[expert].float())
    return hidden, parts


def by_expert(experts: Experts, work: Work) -> Callable[[int], object]:
    """An expert at a time in PyTorch's own kernels, without the sum."""
    tokens = [torch.where(work.routed.chosen == expert)[0] for expert in range(EXPERTS)]

    def compute(_index: int) -> object:
        return [
            F.linear(act(F.linear(work.x[token], up), "silu", True), down)
            for token, up, down in zip(tokens, experts.up, experts.down, strict=True)
            if token.numel()
        ]

    return compute


def candidate(config: Config, calls: list[Call]) -> Candidate:
    return Candidate(config=config, rounds=[calls])
