"""The fused programs of every family compute what the exported ones do, over prompts and decoding."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from builders.constants import rank_constants
from builders.engine import Piece, Pieces, TorchEngine
from builders.export import Graphs, export_rank
from builders.fuse import fused, fused_operators
from builders.live import last_uses
from builders.mapping import Mapping as RankMapping
from builders.mapping import rank_shape
from builders.ops import LayerCache, Step, tensor_parallel
from builders.program import Operators, Program, plain_operators, run
from builders.spec import ModelSpec
from tests.beyond import BEYOND, spec_of
from tests.builders.test_families import LAYOUTS, MOE_LAYOUTS
from tests.oracle import MODELS
from tests.sim import BLOCK, Member, ThreadGroup
from tests.trt_steps import step_of

STEPS = [
    [(0, 0, 5), (2, 0, 11)],  # prompts of different lengths
    [(0, 5, 1), (2, 11, 1)],
    [(1, 0, 3), (0, 6, 1), (2, 12, 4)],  # a prompt, decoding, and more of a prompt
    [(1, 3, 1), (0, 7, 1), (2, 16, 1)],
]
"""Slots, first positions, numbers of tokens."""

SLOTS, BLOCKS_EACH = 3, 5
TABLE = torch.arange(SLOTS * BLOCKS_EACH).view(BLOCKS_EACH, SLOTS).t()
"""Blocks of different sequences interleave."""

Execute = Callable[[Program, Operators, Mapping[str, Any]], list[Tensor]]


def random_weight(rank: int, name: str, shape: tuple[str, ...]) -> Tensor:
    """Not a shard of anything: programs are compared, and layouts differ in nothing else here."""
    digest = hashlib.sha256(f"{rank} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    center = 0.8 if len(shape) == 1 and name.endswith("weight") else 0.0
    return center + 0.15 * torch.randn([int(size) for size in shape], generator=generator)


def weights(program: Program | None, rank: int, prefix: str = "") -> dict[str, Tensor]:
    if program is None:
        return {}
    named = {prefix + name: program.types[value].shape for value, name in program.weights.items()}
    return {name: random_weight(rank, name, shape) for name, shape in named.items()}


class Model:
    """All ranks of a made-up model, every program changed by `change` and executed by `execute`."""

    def __init__(
        self,
        spec: ModelSpec,
        mapping: RankMapping,
        change: Callable[[Program], Program],
        operators: Operators,
        execute: Execute = run,
    ) -> None:
        self._spec, self._mapping = spec, mapping
        self._change, self._operators, self._execute = change, operators, execute
        self.caches: list[LayerCache] = []
        self._engines = [self._engine(rank) for rank in range(mapping.world_size)]

    def _engine(self, rank: int) -> TorchEngine:
        graphs, shape = exported(self._spec, self._mapping, rank), rank_shape(self._spec, self._mapping, rank)
        tensors = weights(graphs.embed, rank) | weights(graphs.head, rank)
        for index, block in enumerate(graphs.layers):
            tensors |= weights(graphs.blocks[block], rank, f"layers.{shape.layers.start + index}.")
        size = (SLOTS * BLOCKS_EACH, BLOCK, shape.num_kv_heads, self._spec.head_dim)
        caches = [LayerCache(k=torch.zeros(size), v=torch.zeros(size)) for _ in shape.layers]
        self.caches += caches
        constants = rank_constants(self._spec, self._mapping, rank)
        return TorchEngine(self._pieces(graphs), shape.layers.start, tensors | constants, caches)

    def _pieces(self, graphs: Graphs) -> Pieces:
        return Pieces(
            embed=self._piece(graphs.embed) if graphs.embed else None,
            rotary=self._piece(graphs.rotary) if graphs.rotary else None,
            blocks=tuple(map(self._piece, graphs.blocks)),
            layers=graphs.layers,
            head=self._piece(graphs.head) if graphs.head else None,
        )

    def _piece(self, program: Program) -> Piece:
        changed = self._change(program)
        return Piece(program=changed, runner=lambda bound: self._execute(changed, self._operators, bound))

    def forward(self, ids: Tensor, step: Step) -> list[Tensor]:
        """What every rank of the last stage says."""
        size = self._mapping.tp_size
        xs = [ids] * size
        for stage in range(self._mapping.pp_size):
            group, engines = ThreadGroup(size), self._engines[stage * size :][:size]
            members = map(group.member, range(size))
            with ThreadPoolExecutor(size) as pool:
                xs = list(pool.map(_run, members, engines, xs, [step] * size))
        return xs


@torch.no_grad()
def _run(member: Member, engine: TorchEngine, x: Tensor, step: Step) -> Tensor:
    with tensor_parallel(member):
        return engine.forward(x, step)


@functools.cache
def exported(spec: ModelSpec, mapping: RankMapping, rank: int) -> Graphs:
    return export_rank(spec, mapping, rank, torch.float32, BLOCK)


def unchanged(program: Program) -> Program:
    return program


BOTH = {**plain_operators(), **fused_operators()}


def differences(one: Model, other: Model) -> list[float]:
    """Between all logits of all steps, and all caches after them."""
    generator, found = torch.Generator().manual_seed(3), []
    for parts in STEPS:
        step = step_of(parts)
        step = replace(step, block_table=TABLE[step.block_table[:, 0]])
        ids = torch.randint(0, 101, step.positions.shape, generator=generator)
        pairs = zip(one.forward(ids, step), other.forward(ids, step), strict=True)
        found += [(a - b).abs().max().item() for a, b in pairs]
    for a, b in zip(one.caches, other.caches, strict=True):
        found += [(a.k - b.k).abs().max().item(), (a.v - b.v).abs().max().item()]
    return found


def cases() -> list[Any]:
    """Stages of a pipeline have the programs of a whole model or fewer: most are left to the whole run."""
    often = ("llama2-gqa", "gpt2", "mixtral", "mpt-qk-norm-head")
    return [
        pytest.param(name, layout, marks=[pytest.mark.slow] if layout == "pp2" and name not in often else [])
        for name in [*MODELS, *BEYOND]
        for layout in (
            *("1", "tp2", "pp2"),
            *(["ep2"] if spec_of(name).moe else []),
            *(["tp2-vocab"] if name in ("gpt2", "embedding-scale") else []),
        )
    ]


@pytest.mark.parametrize(("name", "layout"), cases())
def test_fused_programs_are_the_exported_ones(name: str, layout: str) -> None:
    spec, mapping = spec_of(name), (LAYOUTS | MOE_LAYOUTS)[layout]
    plain = Model(spec, mapping, unchanged, plain_operators())
    assert set(differences(plain, Model(spec, mapping, fused, BOTH))) == {0.0}


def executed_with_little_memory(
    program: Program, operators: Operators, bound: Mapping[str, Any]
) -> list[Tensor]:
    """As `run`, but what nothing needs any more is overwritten, as if its memory were another's."""
    values = dict(bound)
    for step, ended in zip(program.instructions, last_uses(program), strict=True):
        (values[step.out],) = run(
            replace(program, instructions=(step,), outputs=(step.out,)), operators, values
        )
        for name in ended:
            _overwrite(values.pop(name))
    return [values[name] for name in program.outputs]


def _overwrite(value: Any) -> None:
    for tensor in [value] if isinstance(value, Tensor) else value or ():
        tensor.fill_(float("nan") if tensor.is_floating_point() else 0)


@pytest.mark.parametrize("change", [unchanged, fused])
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("llama2-gqa", "tp2-vocab"),
        ("gpt2", "1"),
        ("mixtral", "tp2"),
        ("mpt-qk-norm-whole", "tp2"),
        ("nemo-swiglu", "1"),
    ],
)
def test_memory_can_be_reused_after_last_uses(
    name: str, layout: str, change: Callable[[Program], Program]
) -> None:
    plain = Model(spec_of(name), LAYOUTS[layout], unchanged, plain_operators())
    frugal = Model(spec_of(name), LAYOUTS[layout], change, BOTH, executed_with_little_memory)
    assert set(differences(plain, frugal)) == {0.0}


@pytest.mark.parametrize("operator", sorted(fused_operators()))
def test_comparison_can_fail(operator: str) -> None:
    """Whatever operator is slightly off, it is seen."""
    name = "mpt-qk-norm-head" if operator in ("fused.write", "fused.attend") else "llama2-gqa"
    layout = LAYOUTS["tp2" if operator == "fused.all_reduce" else "1"]

    def off(*args: Any) -> Any:
        moved = [arg * 1.01 if isinstance(arg, Tensor) and arg.is_floating_point() and index < 2 else arg
                 for index, arg in enumerate(args)]  # fmt: skip
        return fused_operators()[operator](*moved)

    plain = Model(spec_of(name), layout, unchanged, plain_operators())
    wrong = Model(spec_of(name), layout, fused, {**BOTH, operator: off})
    assert max(differences(plain, wrong)) > 1e-4
