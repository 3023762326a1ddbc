"""One rank as one TensorRT network: inputs, two profiles, layers times blocks, outputs.

Prefill is one sequence of S tokens, decoding is B sequences of one: two profiles of the same network.
A plan that holds no weights takes them, and the rank's constants, as inputs. TensorRT's own stripping
needs a GPU at build time; inputs build anywhere, cost no memory however large the model is, need no
refitting at load, and ranks of equal shape share the plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from builders.constants import rank_constants
from builders.export import Graphs
from builders.limits import Limits
from builders.live import live, reads
from builders.mapping import Mapping, RankShape, rank_shape
from builders.program import Program, run
from builders.spec import ModelSpec
from builders.trt.attention import Cache, Slots, by_sequence
from builders.trt.logger import Log, new_logger
from builders.trt.lowering import operators
from builders.trt.net import Net
from builders.trt.weights import Source, Weights

DIMENSIONS = ("batch", "tokens")
"""What changes from step to step is called so, and comes first: sequences, then tokens of each."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A finished network with all that must outlive it."""

    definition: Any
    builder: Any
    profiles: tuple[Profile, ...]
    weight_inputs: tuple[str, ...]
    """Weights and constants that the plan is given when it runs; layers count from the rank's first."""
    held: tuple[Tensor, ...]
    log: Log


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sequences, and tokens of each, in one execution."""

    batch: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What one kind of execution is tuned for."""

    smallest: Sizes
    usual: Sizes
    largest: Sizes


def profiles_of(limits: Limits) -> tuple[Profile, Profile]:
    """Prefill, then decode."""
    one, prompt = Sizes(batch=1, tokens=1), min(limits.max_input_len, limits.max_num_tokens)
    batch = limits.max_sequences
    return (
        Profile(
            smallest=one,
            usual=Sizes(batch=1, tokens=-(-prompt // 2)),
            largest=Sizes(batch=1, tokens=prompt),
        ),
        Profile(
            smallest=one, usual=Sizes(batch=-(-batch // 2), tokens=1), largest=Sizes(batch=batch, tokens=1)
        ),
    )


def lower(
    graphs: Graphs,
    spec: ModelSpec,
    mapping: Mapping,
    rank: int,
    dtype: torch.dtype,
    limits: Limits,
    trt: Any,
    weights: Weights | None,
) -> Network:
    """The network of one rank; without weights, one that is given them as inputs."""
    logger, log = new_logger(trt)
    builder = trt.Builder(logger)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    net = Net(trt, builder.create_network(typed), log)
    source = Source(net, weights, rank_constants(spec, mapping, rank))
    part = _Part(net, source, graphs, rank_shape(spec, mapping, rank), spec, limits)
    part.lower(dtype)
    return Network(
        definition=net.definition,
        builder=builder,
        profiles=profiles_of(limits),
        weight_inputs=tuple(source.inputs),
        held=tuple(net.held),
        log=log,
    )


class _Part:
    """One rank's part of the model, on its way into the network."""

    def __init__(
        self, net: Net, source: Source, graphs: Graphs, shape: RankShape, spec: ModelSpec, limits: Limits
    ) -> None:
        self._net, self._source, self._graphs, self._shape = net, source, graphs, shape
        self._spec, self._limits = spec, limits
        self._positions = self._input("positions", torch.int32, "batch", "tokens")
        self._slots = self._new_slots()

    def _new_slots(self) -> Slots:
        net, starts = self._net, self._input("starts", torch.int32, "batch")
        net.scope = "slots"
        shape = net.add("shape", self._positions)
        tokens = net.cast(net.slice(shape, 0, 1, 1), torch.int32)
        lengths = net.binary("SUM", starts, tokens)
        return Slots(shape=shape, starts=starts, lengths=lengths, size=self._limits.max_seq_len)

    def _input(self, name: str, dtype: torch.dtype, *dims: int | str) -> Any:
        """An input; dimensions with names change from step to step."""
        net = self._net
        sizes = tuple(size if isinstance(size, int) else -1 for size in dims)
        tensor = net.definition.add_input(name, net.dtype(dtype), sizes)
        for axis, size in enumerate(dims):
            if isinstance(size, str):
                tensor.set_dimension_name(axis, size)
        return tensor

    def lower(self, dtype: torch.dtype) -> None:
        self._net.scope = "step"
        positions = self._net.reshape(self._positions, (-1,))
        x = self._embedded(dtype, positions)
        step = {"step_positions": positions, **self._angles(positions)}
        for layer in range(len(self._graphs.layers)):
            caches = {f"cache_{part}": self._cache(layer, part, dtype) for part in "kv"}
            x = self._block(layer, {**step, **caches, "x": x})
        self._output(x)

    def _sequences(self) -> Any:
        """[T] The sequence of every token."""
        net = self._net
        start = net.constant(torch.tensor(0, dtype=torch.int32))
        step = net.constant(torch.tensor([1, 0], dtype=torch.int32))
        layer = net.layer("fill", (1, 1), net.trt.FillOperation.LINSPACE, net.trt.int32)
        for index, tensor in enumerate((self._slots.shape, start, step)):
            layer.set_input(index, tensor)
        return net.reshape(layer.get_output(0), (-1,))

    def _run(self, program: Program, scope: str, stored: str, inputs: dict[str, Any]) -> list[Any]:
        tensors = self._source.tensors(program, scope, stored)
        # A step's other fields belong to the paged cache: slots stand in for them.
        bound = {**dict.fromkeys(program.inputs), **tensors, **inputs}
        return run(program, operators(self._net, self._slots, scope), bound)

    def _embedded(self, dtype: torch.dtype, positions: Any) -> Any:
        """[T, H]"""
        net, size = self._net, self._spec.hidden_size
        if self._graphs.embed is None:
            return net.reshape(self._input("hidden", dtype, "batch", "tokens", size), (-1, size))
        ids = net.reshape(self._input("ids", torch.int32, "batch", "tokens"), (-1,))
        (x,) = self._run(self._graphs.embed, "", "", {"ids": ids, "positions": positions})
        return x

    def _angles(self, positions: Any) -> dict[str, Any]:
        """cos and sin, computed once for all layers."""
        if self._graphs.rotary is None:
            return {}
        program = live(self._graphs.rotary)
        inputs = {"step_positions": positions}
        if reads(program, "step_lengths"):
            inputs["step_lengths"] = self._input("lengths", torch.int32, "batch")
            inputs["step_sequences"] = self._sequences()
        cos, sin = self._run(program, "rotary.", "", inputs)
        return {"rotary_0": cos, "rotary_1": sin}

    def _cache(self, layer: int, part: str, dtype: torch.dtype) -> Cache:
        heads, size = self._shape.num_kv_heads, self._spec.head_dim
        dims = ("batch", heads, self._limits.max_seq_len, size)
        return Cache(input=self._input(f"cache.{layer}.{part}", dtype, *dims))

    def _block(self, layer: int, inputs: dict[str, Any]) -> Any:
        program = self._graphs.blocks[self._graphs.layers[layer]]
        stored = f"layers.{self._shape.layers[layer]}."
        (x,) = self._run(program, f"layers.{layer}.", stored, inputs)
        return x

    def _output(self, x: Any) -> None:
        """The wanted tokens' logits [B, vocabulary], or hidden states [B, S, H] for the next stage."""
        net = self._net
        if self._graphs.head is None:
            name, x = "hidden_out", by_sequence(net, self._slots, x)
        else:
            wanted = self._input("wanted", torch.int32, "batch")
            name, (x,) = "logits", self._run(self._graphs.head, "", "", {"x": x, "wanted": wanted})
        x.name = name
        net.definition.mark_output(x)
