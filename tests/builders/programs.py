"""Programs written by hand and at random, with tensors to run them on."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor

from builders.program import Instruction, Program, TensorType

Value = dict[str, str]
"""An argument that is an input, a weight or an earlier result."""

SIZES = {"tokens": 5, "batch": 1, "table": 2, "blocks": 3}


class Draft:
    """A program that grows instruction by instruction."""

    def __init__(self) -> None:
        self._inputs: list[str] = []
        self._weights: dict[str, str] = {}
        self._types: dict[str, TensorType] = {}
        self._instructions: list[Instruction] = []
        self._counts: dict[str, int] = {}

    def given(self, name: str, shape: tuple[str, ...], dtype: str = "float32") -> Value:
        """An input."""
        self._inputs.append(name)
        self._types[name] = TensorType(dtype=dtype, shape=shape)
        return {"value": name}

    def weight(self, *shape: str) -> Value:
        name = self._new("p_weight")
        self._weights[name] = name
        self._types[name] = TensorType(dtype="float32", shape=shape)
        return {"value": name}

    def op(self, name: str, *args: Any, **kwargs: Any) -> Value:
        out = self._new(name.split(".")[-1])
        self._instructions.append(Instruction(op=name, args=args, kwargs=kwargs, out=out))
        return {"value": out}

    def _new(self, name: str) -> str:
        """As the tracer counts them."""
        count = self._counts.get(name, 0)
        self._counts[name] = count + 1
        return f"{name}_{count}" if count else name

    def program(self, *outputs: Value) -> Program:
        return Program(
            inputs=tuple(self._inputs),
            weights=self._weights,
            constants={},
            types=self._types,
            instructions=tuple(self._instructions),
            outputs=tuple(output["value"] for output in outputs),
        )


def tensors(program: Program) -> dict[str, Tensor]:
    """Inputs and weights; whole numbers are those of five tokens of one sequence in two blocks."""
    generator = torch.Generator().manual_seed(1)
    numbers = {
        "ids": torch.tensor([1, 2, 9, 10, 0]),
        "first": torch.tensor(2),
        "positions": torch.arange(5),
        "sequences": torch.zeros(5, dtype=torch.int64),
        "lengths": torch.tensor([5]),
        "block_table": torch.tensor([[2, 0]]),
    }
    return {
        name: numbers[name]
        if of.dtype == "int64"
        else torch.randn(
            [SIZES.get(size) or int(size) for size in of.shape],
            generator=generator,
            dtype=getattr(torch, of.dtype),
        )
        for name, of in program.types.items()
    }


def summary(program: Program) -> list[str]:
    """Operators, with what linear layers and sums over ranks have absorbed."""
    return [_described(step) for step in program.instructions]


def _described(step: Instruction) -> str:
    if step.op == "fused.all_reduce":
        return "all_reduce" if step.args[2] is None else "all_reduce residual"
    return described(step.args) if step.op == "fused.linear" else step.op


def described(args: tuple[Any, ...]) -> str:
    _x, _weight, bias, residual, _gain, _shift, norm, _eps, activation, gated = args
    parts = {
        norm: norm != "none",
        "linear": True,
        "bias": bias,
        activation: activation != "none",
        "gated": gated,
        "residual": residual,
    }
    return " ".join(part for part, there in parts.items() if there)


@st.composite
def programs(draw: DrawFn) -> Program:
    """Norms, linear layers, activations, gates and sums of [tokens, 8], in any order and read anywhere."""
    draft = Draft()
    values = [draft.given("x", ("tokens", "8"))]
    for _ in range(draw(st.integers(1, 12))):
        # Mostly the newest value: long chains are what is fused.
        x = values[-1] if draw(st.integers(0, 3)) else draw(st.sampled_from(values))
        values += draw(st.sampled_from(_STEPS))(draft, x, draw(st.sampled_from(values)))
    return draft.program(values[-1], *draw(st.lists(st.sampled_from(values[1:]), max_size=2)))


def _gated(draft: Draft, x: Value, _other: Value) -> list[Value]:
    halves = draft.op("aten.chunk", draft.op("aten.linear", x, draft.weight("16", "8")), 2, -1)
    gate, up = (draft.op("getitem", halves, index) for index in range(2))
    activated = draft.op("aten.silu", gate)
    return [gate, up, activated, draft.op("aten.mul", activated, up)]


def _layer_norm_1p(draft: Draft, x: Value, _other: Value) -> list[Value]:
    weight = draft.op("aten.add", draft.weight("8"), 1)
    return [draft.op("aten.layer_norm", x, [8], weight, draft.weight("8"), 1e-5, False)]


_STEPS = (
    lambda draft, x, _other: [draft.op("aten.linear", x, draft.weight("8", "8"))],
    lambda draft, x, _other: [draft.op("aten.linear", x, draft.weight("8", "8"), draft.weight("8"))],
    lambda draft, x, _other: [draft.op("aten.rms_norm", x, [8], draft.weight("8"), 1e-6)],
    lambda draft, x, _other: [draft.op("aten.layer_norm", x, [8], draft.weight("8"), None, 1e-5, False)],
    lambda draft, x, _other: [draft.op("aten.silu", x)],
    lambda draft, x, _other: [draft.op("aten.gelu", x, approximate="tanh")],
    lambda draft, x, _other: [draft.op("aten.square", draft.op("aten.relu", x))],
    lambda draft, x, other: [draft.op("aten.add", x, other)],
    lambda draft, x, other: [draft.op("aten.add", other, x)],
    lambda draft, x, other: [draft.op("aten.mul", x, other)],
    lambda draft, x, _other: [draft.op("aten.mul", x, 0.5)],
    _gated,
    _layer_norm_1p,
)
