"""Ranks of made-up models in lockstep, twice: as plain decoders and as TensorRT networks interpreted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from builders.constants import rank_constants, set_constants
from builders.convert import read_rows
from builders.decoder import empty_decoder
from builders.export import export_rank
from builders.limits import Limits
from builders.mapping import Mapping as RankMapping
from builders.mapping import rank_shape
from builders.ops import Step, tensor_parallel
from builders.parallel import parallelize
from builders.params import params
from builders.shard import Span, targets
from builders.spec import ModelSpec
from builders.trt.network import Network, lower
from builders.trt.runtime import TrtEngine
from builders.trt.weights import given
from tests.sim import BLOCK, Member, ThreadGroup, same
from tests.trt_interpreter import Interpreter

LIMITS = Limits(max_batch_size=4, max_input_len=16, max_seq_len=48, max_num_tokens=64)

Runner = Callable[[Tensor, Step], Tensor]
"""One rank."""


class Whole:
    """Whole parameters with enough spread that a wrong slice, order or scale shows in the logits."""

    def __init__(self, spec: ModelSpec) -> None:
        self._shapes = {param.name: param.shape for param in params(spec)}

    def read(self, param: str, rows: Span, cols: Span | None) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(param.encode()).digest()[:7], "big")
        shape, generator = self._shapes[param], torch.Generator().manual_seed(seed)
        center = 0.8 if len(shape) == 1 and param.endswith("weight") else 0.0
        whole = center + 0.15 * torch.randn(shape, generator=generator)
        return whole[slice(*rows)] if cols is None else whole[slice(*rows), slice(*cols)]


def made_up(spec: ModelSpec, mapping: RankMapping, rank: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """A rank's tensors; a tied head is a view of the embedding."""
    pieces, sizes = Whole(spec), {param.name: param.shape[0] for param in params(spec)}
    tensors = {
        target.name: torch.cat(
            [read_rows(pieces, part, part.rows, sizes[part.param]) for part in target.slices]
        )
        .view(target.shape)
        .to(dtype)
        for target in targets(spec, mapping, rank)
    }
    shape = rank_shape(spec, mapping, rank)
    if shape.last and "head.weight" not in tensors:
        first = 0 if mapping.embedding_split == "vocab" else mapping.place(rank).tp * shape.vocab_size
        tensors["head.weight"] = tensors["embed.weight"][first : first + shape.vocab_size]
    return tensors


def decoder(spec: ModelSpec, mapping: RankMapping, rank: int, dtype: torch.dtype = torch.float32) -> Runner:
    """The truth: a decoder with a paged cache whose blocks of different sequences interleave."""
    made = empty_decoder(spec, mapping, rank)
    made.load_state_dict(made_up(spec, mapping, rank, dtype), assign=True)
    set_constants(made, rank_constants(spec, mapping, rank))
    parallelize(made, mapping, mapping.place(rank))
    batch, blocks = LIMITS.max_batch_size, -(-LIMITS.max_seq_len // BLOCK)
    caches = made.new_caches(batch * blocks, BLOCK)
    table = torch.arange(batch * blocks).view(blocks, batch).t()
    return lambda x, step: made(x, replace(step, block_table=table[step.block_table[:, 0]]), caches)


def network(
    spec: ModelSpec,
    mapping: RankMapping,
    rank: int,
    trt: Any,
    *,
    strip: bool,
    dtype: torch.dtype = torch.float32,
    limits: Limits = LIMITS,
) -> Network:
    """A rank lowered, with its weights inside or as inputs."""
    graphs = export_rank(spec, mapping, rank, dtype, limits.tokens_per_block)
    weights = None if strip else made_up(spec, mapping, rank, dtype).__getitem__
    return lower(graphs, spec, mapping, rank, dtype, limits, trt, weights)


def engine(
    spec: ModelSpec,
    mapping: RankMapping,
    rank: int,
    trt: Any,
    member: Member,
    *,
    strip: bool,
    dtype: torch.dtype = torch.float32,
) -> Runner:
    """The same rank as the runtime's own engine, with the interpreter in the device's place."""
    lowered = network(spec, mapping, rank, trt, strip=strip, dtype=dtype)
    shape = rank_shape(spec, mapping, rank)
    tensors = {**made_up(spec, mapping, rank, dtype), **rank_constants(spec, mapping, rank)}
    given_tensors = given(lowered.weight_inputs, shape.layers.start, tensors)
    executor = Interpreted(lowered, given_tensors, member, dtype)
    return TrtEngine(executor, LIMITS, first=shape.first, last=shape.last).forward


class Interpreted:
    """Executes a network where a plan would be; keeps the slots."""

    def __init__(
        self, lowered: Network, tensors: Mapping[str, Tensor], member: Member, dtype: torch.dtype
    ) -> None:
        self._lowered = lowered  # the network's constants are its memory
        self._interpreter, self._tensors = Interpreter(lowered.definition, member), tensors
        inputs = [lowered.definition.get_input(index) for index in range(lowered.definition.num_inputs)]
        self._names = {tensor.name for tensor in inputs}
        self._slots = {
            tensor.name: torch.zeros(LIMITS.max_batch_size, *tuple(tensor.shape)[1:], dtype=dtype)
            for tensor in inputs
            if tensor.name.startswith("cache.")
        }

    def run(self, first_slot: int, inputs: Mapping[str, Tensor]) -> Tensor:
        batch = len(inputs["starts"])
        slots = {name: slot[first_slot : first_slot + batch] for name, slot in self._slots.items()}
        outputs = self._interpreter.run({**self._tensors, **slots, **self._wanted(inputs)})
        (name,) = (name for name in outputs if not name.startswith("cache."))
        for cache, slot in slots.items():
            slot.copy_(outputs[f"{cache}.updated"])
        return outputs[name]

    def copy_slot(self, source: int, target: int) -> None:
        for slot in self._slots.values():
            slot[target] = slot[source]

    def _wanted(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those that the network has, as narrow as it has them."""
        return {
            name: value.to(torch.int32) if value.dtype == torch.int64 else value
            for name, value in inputs.items()
            if name in self._names
        }


@dataclass(frozen=True, kw_only=True)
class Lockstep:
    """Stage after stage, the ranks of each at the same time."""

    stages: list[list[tuple[Runner, Member]]]

    @staticmethod
    def of(mapping: RankMapping, make: Callable[[int, Member], Runner]) -> Lockstep:
        stages = []
        for stage in range(mapping.pp_size):
            group = ThreadGroup(mapping.tp_size)
            members = [group.member(tp) for tp in range(mapping.tp_size)]
            first = stage * mapping.tp_size
            stages.append([(make(first + tp, member), member) for tp, member in enumerate(members)])
        return Lockstep(stages=stages)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        for ranks in self.stages:
            with ThreadPoolExecutor(len(ranks)) as pool:
                x = same(list(pool.map(lambda rank, x=x: _run(*rank, x, step), ranks)))  # type: ignore[misc]
        return x


@torch.no_grad()
def _run(runner: Runner, member: Member, x: Tensor, step: Step) -> Tensor:
    with tensor_parallel(member):
        return runner(x, step)
