"""Operators that no exported model holds yet: written by hand, interpreted, and built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from builders.program import Instruction, Program, TensorType, plain_operators, run
from builders.trt.logger import new_logger
from builders.trt.lowering import operators
from builders.trt.net import Net
from builders.trt.weights import Source
from tests.sim import ThreadGroup
from tests.trt_interpreter import Interpreter

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")


def value(name: str) -> dict[str, str]:
    return {"value": name}


def program(op: str, args: list[Any], tensors: Mapping[str, Tensor], **kwargs: Any) -> Program:
    """One operator on x, and on weights whose value names are their own names."""
    return Program(
        inputs=("x",),
        weights={name: name for name in tensors},
        constants={},
        types={
            name: TensorType(dtype=str(t.dtype).removeprefix("torch."), shape=tuple(map(str, t.shape)))
            for name, t in tensors.items()
        },
        instructions=(Instruction(op=op, args=tuple(args), kwargs=kwargs, out="out"),),
        outputs=("out",),
    )


class Lowered:
    """A program of one operator as a network, with its weights inside or as inputs."""

    def __init__(self, made: Program, tensors: Mapping[str, Tensor], x: Tensor, *, strip: bool) -> None:
        logger, log = new_logger(trt)
        self._builder = trt.Builder(logger)
        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.net = Net(trt, self._builder.create_network(typed), log)
        self._width = x.shape[1]
        given = self.net.definition.add_input("x", self.net.dtype(x.dtype), (-1, self._width))
        source = Source(self.net, None if strip else tensors.__getitem__, {})
        bound = {**source.tensors(made, "", ""), "x": given}
        (out,) = run(made, operators(self.net, None, ""), bound)  # type: ignore[arg-type]
        out.name = "out"  # type: ignore[attr-defined]
        self.net.definition.mark_output(out)

    def run(self, inputs: Mapping[str, Tensor]) -> Tensor:
        narrow = {
            name: tensor.to(torch.int32) if tensor.dtype == torch.int64 else tensor
            for name, tensor in inputs.items()
        }
        interpreter = Interpreter(self.net.definition, ThreadGroup(1).member(0))
        return interpreter.run(narrow)["out"]  # type: ignore[no-any-return]

    def builds(self, capability: str) -> bool:
        config, profile = self._builder.create_builder_config(), self._builder.create_optimization_profile()
        profile.set_shape("x", *((tokens, self._width) for tokens in (1, 4, 8)))
        config.add_optimization_profile(profile)
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
        return self._builder.build_serialized_network(self.net.definition, config) is not None


def check(made: Program, tensors: Mapping[str, Tensor], x: Tensor, capability: str = "SM80") -> None:
    """PyTorch and the network agree, and the network builds with its weights inside and without."""
    (expected,) = run(made, plain_operators(), {**tensors, "x": x})
    found = Lowered(made, tensors, x, strip=True).run({**tensors, "x": x})
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for strip in (True, False):
        assert Lowered(made, tensors, x, strip=strip).builds(capability)


def narrow_linear(groups: int, *, zero: bool, bias: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randint(-100, 100, (64, 128), generator=generator).to(dtype)
    tensors = {"weight": weight, "scale": torch.rand(64, groups, generator=generator) / 100}
    if zero:
        tensors["zero"] = torch.randint(-8, 8, (64, groups), generator=generator).float()
    if bias:
        tensors["bias"] = torch.randn(64, generator=generator)
    return tensors


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("dtype", "capability"), [(torch.int8, "SM80"), (torch.float8_e4m3fn, "SM89")], ids=["int8", "fp8"]
)
def test_quantized_linear(groups: int, zero: bool, bias: bool, dtype: torch.dtype, capability: str) -> None:
    tensors = narrow_linear(groups, zero=zero, bias=bias, dtype=dtype)
    names = [value(name) if name in tensors else None for name in ("weight", "scale", "zero", "bias")]
    made = program("rankforge.quantized_linear", [value("x"), *names], tensors)
    check(made, tensors, torch.randn(5, 128), capability)


def test_experts_with_narrow_weights() -> None:
    generator = torch.Generator().manual_seed(2)
    tensors = {
        "up": torch.randint(-100, 100, (4, 48, 16), generator=generator).to(torch.int8),
        "down": torch.randint(-100, 100, (4, 16, 24), generator=generator).to(torch.int8),
        "up_scale": torch.rand(4, 48, 1, generator=generator) / 100,
        "down_scale": torch.rand(4, 16, 1, generator=generator) / 100,
        "first": torch.tensor([0]),
    }
    names = ("up", "down", "up_scale", "down_scale", "first")
    args = [value("x"), value("logits"), *map(value, names), 2, True, "silu", True]
    made = program("rankforge.moe", args, tensors)
    # The router's logits are the first columns of x.
    logits = Instruction(op="aten.narrow", args=(value("x"), 1, 0, 4), kwargs={}, out="logits")
    made = Program(**{**vars(made), "instructions": (logits, *made.instructions)})
    check(made, tensors, torch.randn(6, 16, generator=generator))


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("aten.zeros_like", []),
        ("aten.relu", []),
        ("aten.square", []),
        ("aten.chunk", [4, -1]),
        ("aten.clamp", [-0.5]),
        ("aten.clamp", [None, 0.5]),
        ("aten.mean", [[-1]]),
        ("aten.mean", [[1], True]),
        ("aten.unflatten", [-1, [2, -1]]),
        ("aten.unsqueeze", [0]),
        ("aten.unsqueeze", [-1]),
        ("aten.gt", [0.0]),
        ("aten.ge", [0.0]),
        ("aten.lt", [0]),
    ],
    ids=repr,
)
def test_forms_that_the_exporter_may_choose(op: str, args: list[Any]) -> None:
    made = program(op, [value("x"), *args], {})
    if op == "aten.chunk":
        last = Instruction(op="getitem", args=(value("out"), 3), kwargs={}, out="last")
        made = Program(**{**vars(made), "instructions": (*made.instructions, last), "outputs": ("last",)})
    check(made, {}, torch.randn(3, 8))
