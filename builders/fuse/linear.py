"""Rules that give a linear layer its neighbours: the norm before it, activation and residual after it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from builders.fuse.graph import Graph, is_value, value
from builders.program import Instruction

LINEAR = "fused.linear"


@dataclass(frozen=True, kw_only=True)
class Linear:
    """The arguments of fused.linear, in its order."""

    x: Any
    weight: Any
    bias: Any = None
    residual: Any = None
    norm_weight: Any = None
    norm_bias: Any = None
    norm: str = "none"
    eps: float = 0.0
    activation: str = "none"
    gated: bool = False

    @staticmethod
    def of(step: Instruction) -> Linear:
        return Linear(**dict(zip(Linear.__dataclass_fields__, step.args, strict=True)))

    def to(self, out: str) -> tuple[Instruction]:
        """As the one instruction that makes `out`."""
        return (Instruction(op=LINEAR, args=tuple(vars(self).values()), kwargs={}, out=out),)

    @property
    def ends_in_sums(self) -> bool:
        """Whether nothing follows the product and its bias yet."""
        return self.activation == "none" and self.residual is None


def alone(_graph: Graph, step: Instruction) -> tuple[Instruction, ...] | None:
    """Every linear layer is that kernel, whatever is found around it."""
    if step.op != "aten.linear" or step.kwargs:
        return None
    x, weight, bias = (*step.args, None)[:3]
    return Linear(x=x, weight=weight, bias=bias).to(step.out)


def after_norm(graph: Graph, step: Instruction) -> tuple[Instruction, ...] | None:
    """Normalize on the way in.

    Where several linear layers read one norm, each does so itself: a row is short beside a weight, and a
    launch fewer is worth more. Where anything else reads it, as experts do, it is made anyway and stays.
    """
    if step.op != LINEAR or (linear := Linear.of(step)).norm != "none":
        return None
    norm = graph.maker(linear.x, "aten.rms_norm", "aten.layer_norm")
    if norm is None or norm.out in graph.program.outputs:
        return None
    if not all(_only_normalizes(reader, norm) for reader in graph.readers(norm.out)):
        return None
    found = _norm(graph, norm)
    return replace(linear, **found).to(step.out) if found else None


def _only_normalizes(reader: Instruction, norm: Instruction) -> bool:
    return (
        reader.op == LINEAR and reader.args[0] == value(norm.out) and value(norm.out) not in reader.args[1:]
    )


def _norm(graph: Graph, step: Instruction) -> dict[str, Any] | None:
    """A norm over the last dimension as arguments of fused.linear."""
    x, shape, *rest = step.args
    defaults = [None, None] if step.op == "aten.rms_norm" else [None, None, 1e-5]
    rest += defaults[len(rest) :]
    weight, eps = rest[0], rest[-1 if step.op == "aten.rms_norm" else 2]
    if step.kwargs or len(shape) != 1 or weight is None or eps is None:
        return None
    if step.op == "aten.rms_norm":
        return {"x": x, "norm": "rms", "norm_weight": weight, "eps": eps}
    plus_one = graph.maker(weight, "aten.add")
    found = {"x": x, "norm": "layer", "norm_weight": weight, "norm_bias": rest[1], "eps": eps}
    if plus_one is not None and not plus_one.kwargs and plus_one.args[1:] == (1,):
        found |= {"norm": "layer1p", "norm_weight": plus_one.args[0]}
    return found


def before_activation(graph: Graph, step: Instruction) -> tuple[Instruction, ...] | None:
    """The activation of a linear layer that nothing else reads."""
    product = graph.sole(step.args[0], LINEAR) if step.args else None
    if product is None:
        return None
    linear = Linear.of(product)
    squared = step.op == "aten.square" and linear.activation == "relu" and not linear.gated
    if squared and linear.residual is None:
        return replace(linear, activation="relu2").to(step.out)
    name = _activation(step)
    return replace(linear, activation=name).to(step.out) if name and linear.ends_in_sums else None


def _activation(step: Instruction) -> str | None:
    if step.op == "aten.gelu":
        kinds = {"none": "gelu", "tanh": "gelu_tanh"}
        return kinds.get(step.kwargs.get("approximate", "none"))
    names = {"aten.silu": "silu", "aten.relu": "relu"}
    return names.get(step.op) if not step.kwargs else None


def before_gate(graph: Graph, step: Instruction) -> tuple[Instruction, ...] | None:
    """The activated first half of a linear layer times its second half."""
    if step.op != "aten.mul" or len(step.args) != 2 or step.kwargs:
        return None
    for gate, up in (step.args, step.args[::-1]):
        name, half = _gate(graph, gate)
        other = graph.sole(up, "getitem")
        if name and half and other and (half.args[1], other.args[1]) == (0, 1):
            made = _gated(graph, half, other, name)
            return made.to(step.out) if made else None
    return None


def _gate(graph: Graph, arg: Any) -> tuple[str | None, Instruction | None]:
    """The activation, and what it is applied to if that is a part of something."""
    half = graph.chain(arg, "aten.square", "aten.relu", "getitem")
    if half is not None:
        return "relu2", half
    last = graph.sole(arg, "aten.silu", "aten.relu", "aten.gelu")
    return (_activation(last), graph.sole(last.args[0], "getitem")) if last else (None, None)


def _gated(graph: Graph, gate: Instruction, up: Instruction, activation: str) -> Linear | None:
    if gate.args[0] != up.args[0]:
        return None
    halves = graph.maker(gate.args[0], "aten.chunk")
    if halves is None or halves.args[1:] != (2, -1) or not graph.is_read(halves.out, 2):
        return None
    product = graph.sole(halves.args[0], LINEAR)
    linear = Linear.of(product) if product else None
    return replace(linear, activation=activation, gated=True) if linear and linear.ends_in_sums else None


def before_residual(graph: Graph, step: Instruction) -> tuple[Instruction, ...] | None:
    """The sum with a value of the same type: with another it would be a broadcast or a conversion."""
    if step.op != "aten.add" or step.kwargs or not all(map(is_value, step.args)):
        return None
    for residual, arg in (step.args, step.args[::-1]):
        product = graph.sole(arg, LINEAR)
        if product is None or (linear := Linear.of(product)).residual is not None:
            continue
        if graph.types[product.out] == graph.types.get(residual["value"]):
            return replace(linear, residual=residual).to(step.out)
    return None


LINEAR_RULES = (alone, after_norm, before_activation, before_gate, before_residual)
