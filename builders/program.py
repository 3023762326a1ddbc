"""An exported graph as plain data, without code or weights: what engines store, compare, and lower."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from builders.plain import from_json

OPERATORS = frozenset(
    """
    rankforge.attention rankforge.rotate rankforge.moe rankforge.quantized_linear
    rankforge.all_reduce rankforge.all_gather
    aten.linear aten.embedding aten.index_select aten.rms_norm aten.layer_norm
    aten.add aten.sub aten.mul aten.div aten.pow aten.square aten.rsqrt aten.mean
    aten.cos aten.sin aten.where aten.gt aten.ge aten.lt aten.logical_and aten.clamp
    aten.silu aten.gelu aten.relu aten.to aten.narrow aten.unsqueeze aten.flatten aten.unflatten
    aten.split_with_sizes aten.chunk aten.cat aten.zeros_like getitem
    """.split()
)
"""All that a graph may hold; every lowering knows all of them."""


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One operator. An argument {"value": name} refers to an earlier result."""

    op: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: str


@dataclass(frozen=True, kw_only=True)
class TensorType:
    """What a program expects of a tensor it is given."""

    dtype: str
    shape: tuple[str, ...]
    """A size, or the name of one that changes from step to step."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """A graph in order of execution."""

    inputs: tuple[str, ...]
    """What changes with every step."""
    weights: Mapping[str, str]
    """Value to parameter, relative to the piece."""
    constants: Mapping[str, str]
    """Value to buffer: what ranks of equal shape may differ in beside weights."""
    types: Mapping[str, TensorType]
    """Of inputs, weights and constants."""
    instructions: tuple[Instruction, ...]
    outputs: tuple[str, ...]
    results: Mapping[str, TensorType] = field(default_factory=dict)
    """Of what instructions make, where somebody has found out."""

    def to_json(self) -> dict[str, Any]:
        """Plain data; equal programs give equal data."""
        return asdict(self)

    @staticmethod
    def from_json(data: object) -> Program:
        """The inverse of `to_json`."""
        return from_json(Program, data)


def program_of(exported: ExportedProgram, names: Mapping[str, str]) -> Program:
    """The graph of an exported piece; `names` says what its symbolic sizes are called."""
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    kinds: dict[InputKind, dict[str, str]] = {kind: {} for kind in InputKind}
    for name, spec in specs.items():
        kinds[spec.kind][name] = spec.target or name
    nodes = [node for node in exported.graph.nodes if node.op == "call_function"]
    (output,) = (node for node in exported.graph.nodes if node.op == "output")
    return Program(
        inputs=tuple(kinds[InputKind.USER_INPUT]),
        weights=kinds[InputKind.PARAMETER],
        constants=kinds[InputKind.BUFFER],
        types={
            node.name: _type(node.meta["val"], names)
            for node in exported.graph.nodes
            if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor)
        },
        instructions=tuple(_instruction(node) for node in nodes),
        outputs=tuple(node.name for node in output.args[0]),
    )


def _type(value: Tensor, names: Mapping[str, str]) -> TensorType:
    shape = tuple(names.get(str(size), str(size)) for size in value.shape)
    return TensorType(dtype=str(value.dtype).removeprefix("torch."), shape=shape)


def _instruction(node: torch.fx.Node) -> Instruction:
    return Instruction(
        op=operator_name(node.target),
        args=tuple(_encoded(arg) for arg in node.args),
        kwargs={name: _encoded(arg) for name, arg in node.kwargs.items()},
        out=node.name,
    )


def operator_name(target: object) -> str:
    """`namespace.name` of an operator, without its overload; `getitem` of a tuple."""
    if target is operator.getitem:
        return "getitem"
    if not isinstance(target, torch._ops.OpOverload):
        raise TypeError(f"{target}: not an operator")
    return f"{target.namespace}.{target._schema.name.split('::')[1]}"


def _encoded(arg: object) -> Any:
    if isinstance(arg, torch.fx.Node):
        return {"value": arg.name}
    if isinstance(arg, torch.dtype):
        return {"dtype": str(arg).removeprefix("torch.")}
    if isinstance(arg, list | tuple):
        return [_encoded(item) for item in arg]
    if arg is None or isinstance(arg, bool | int | float | str):
        return arg
    raise TypeError(f"{arg!r}: no plain form for an argument of type {type(arg).__name__}")


Operators = Mapping[str, Callable[..., Any]]


def run(program: Program, operators: Operators, bound: Mapping[str, Any]) -> list[Tensor]:
    """Execute instruction by instruction; `bound` holds inputs, weights and constants by value name."""
    values = dict(bound)
    for step in program.instructions:
        args = [decoded(arg, values) for arg in step.args]
        kwargs = {name: decoded(arg, values) for name, arg in step.kwargs.items()}
        values[step.out] = operators[step.op](*args, **kwargs)
    return [values[name] for name in program.outputs]


def decoded(arg: Any, values: Mapping[str, Any]) -> Any:
    """An argument with the values that it refers to."""
    if isinstance(arg, list):
        return [decoded(item, values) for item in arg]
    if isinstance(arg, dict):
        return values[arg["value"]] if "value" in arg else getattr(torch, arg["dtype"])
    return arg


def plain_operators() -> Operators:
    """Every operator as PyTorch itself runs it."""
    found: dict[str, Callable[..., Any]] = {"getitem": operator.getitem}
    for name in OPERATORS - {"getitem"}:
        namespace, short = name.split(".")
        found[name] = getattr(getattr(torch.ops, namespace), short)
    return found
