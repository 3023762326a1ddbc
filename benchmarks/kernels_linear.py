"""Linear layers of an 8B Llama for few rows: our kernels beside cuBLAS and the device's read bandwidth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.device import Device, best_of, compiled, cut, normal, sources_of
from builders.kernels.linear import Linear, Scratch, ScratchSize, linear, linear_configs, scratch_size
from builders.kernels.norm import Norm
from builders.kernels.tune import Candidate, GraphTimer, rounds_for
from builders.ops import act

HIDDEN, WIDTH, QKV, VOCAB = 4096, 14336, 6144, 128256
ROWS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A linear layer of the model, and whether a residual is added after."""

    layer: Linear
    residual: bool = False


def a_norm() -> Norm:
    return Norm(kind="rmsnorm", eps=1e-5, weight=1 + normal(HIDDEN, deviation=0.1))


def a_weight(rows: int, cols: int) -> Tensor:
    return normal(rows, cols, deviation=cols**-0.5)


LAYERS: dict[str, Callable[[], Layer]] = {
    "qkv": lambda: Layer(layer=Linear(weight=a_weight(QKV, HIDDEN), norm=a_norm())),
    "o": lambda: Layer(layer=Linear(weight=a_weight(HIDDEN, HIDDEN)), residual=True),
    "gate_up": lambda: Layer(
        layer=Linear(weight=a_weight(2 * WIDTH, HIDDEN), norm=a_norm(), activation="silu", gated=True)
    ),
    "down": lambda: Layer(layer=Linear(weight=a_weight(HIDDEN, WIDTH)), residual=True),
    "head": lambda: Layer(layer=Linear(weight=a_weight(VOCAB, HIDDEN), norm=a_norm())),
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """One number of rows: what goes in and out, and every way between."""

    x: Tensor
    residual: Tensor | None
    out: Tensor
    candidates: list[Candidate]


def bench_layer(name: str, device: Device) -> None:
    """All numbers of rows."""
    made = LAYERS[name]()
    weight = made.layer.weight
    num_bytes = weight.numel() * weight.element_size()
    copies = [weight] + [weight.clone() for _ in range(rounds_for(num_bytes, device.l2_bytes) - 1)]
    works = [work(device, made, copies, rows) for rows in ROWS]
    kernels = compiled(device, (source for one in works for source in sources_of(one.candidates)))
    timer = device.timer(kernels, num_bytes)
    for one in works:
        bench_rows(device, made.layer, one, copies, timer)


def work(device: Device, made: Layer, copies: list[Tensor], rows: int) -> Work:
    x, out = normal(rows, made.layer.weight.shape[1]), normal(rows, made.layer.width)
    residual = normal(rows, made.layer.width) if made.residual else None
    configs = [
        config for overlap in device.overlaps for config in linear_configs(rows, made.layer, overlap=overlap)
    ]
    scratch = scratch_for([scratch_size(made.layer, config) for config in configs])
    layers = [replace(made.layer, weight=weight) for weight in copies]
    candidates = [
        Candidate(
            config=config,
            rounds=[linear(x, one, config, out=out, residual=residual, scratch=scratch) for one in layers],
        )
        for config in configs
    ]
    return Work(x=x, residual=residual, out=out, candidates=candidates)


def scratch_for(sizes: list[ScratchSize]) -> Scratch:
    """Enough for each."""
    most = ScratchSize()
    for size in sizes:
        most = most | size
    return Scratch(
        partial=torch.zeros(most.partial, device="cuda"),
        counters=torch.zeros(most.counters, device="cuda", dtype=torch.int32),
    )


def bench_rows(device: Device, layer: Linear, one: Work, copies: list[Tensor], timer: GraphTimer) -> None:
    """One line."""
    best = best_of(one.candidates, one.out, expected(layer, one), timer)
    cublas = timer.graph_seconds(lambda index: F.linear(one.x, copies[index]), len(copies))
    plain = timer.graph_seconds(lambda index: unfused(layer, copies[index], one), len(copies))
    if best is None or best.seconds is None:
        return
    rate = layer.weight.numel() * layer.weight.element_size() / best.seconds
    print(
        f"  rows {one.x.shape[0]:3}: {best.seconds * 1e6:7.1f} us {rate / 1e9:5.0f} GB/s "
        f"{rate / device.read_bytes_per_s:4.0%} of the limit | F.linear {cublas * 1e6:7.1f} us, with "
        f"neighbours {plain * 1e6:7.1f} us | {cut(best.config)}",
        flush=True,
    )


def expected(layer: Linear, one: Work) -> Tensor:
    """In float32, a part of the weights at a time."""
    x = one.x.float()
    if layer.norm:
        x = F.rms_norm(x, x.shape[1:], layer.norm.weight.float(), layer.norm.eps)
    y = torch.cat([F.linear(x, part.float()) for part in layer.weight.split(16384)], 1)
    if layer.activation:
        y = act(y, layer.activation, layer.gated)
    return y if one.residual is None else y + one.residual.float()


def unfused(layer: Linear, weight: Tensor, one: Work) -> Tensor:
    """The same in PyTorch's own kernels."""
    x = one.x
    if layer.norm:
        x = F.rms_norm(x, x.shape[1:], layer.norm.weight, layer.norm.eps)
    y = F.linear(x, weight)
    if layer.activation:
        y = act(y, layer.activation, layer.gated)
    return y if one.residual is None else y + one.residual
