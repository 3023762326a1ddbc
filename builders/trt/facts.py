"""What is known of a plan when it is built: it can be asked itself only where its GPU is."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from builders.engine_manifest import Unit, unit_file
from builders.plain import from_json
from builders.trt.build import Plan
from builders.trt.net import torch_dtype
from builders.trt.network import DIMENSIONS, Network

PLAN, FACTS = "engine.plan", "plan.json"


@dataclass(frozen=True, kw_only=True)
class IoTensor:
    """One that a plan takes or gives."""

    name: str
    mode: Literal["input", "output"]
    dtype: str
    shape: tuple[str, ...]
    """A size, or the name of one that changes from step to step."""


@dataclass(frozen=True, kw_only=True)
class PlanFacts:
    """Beside a plan, in its folder."""

    tensors: tuple[IoTensor, ...]
    """What a step gives and gets, and the caches."""
    weight_inputs: tuple[str, ...]
    """What a plan without weights is given once, by its own names."""
    activation_bytes: int | None
    """What an execution needs beside weights and caches; None where TensorRT did not say."""


def facts_of(trt: Any, network: Network, plan: Plan) -> PlanFacts:
    """From the network, which has the names of its dimensions."""
    definition, weights = network.definition, set(network.weight_inputs)
    inputs = (definition.get_input(index) for index in range(definition.num_inputs))
    outputs = (definition.get_output(index) for index in range(definition.num_outputs))
    return PlanFacts(
        tensors=(
            *(_tensor(trt, tensor, "input") for tensor in inputs if tensor.name not in weights),
            *(_tensor(trt, tensor, "output") for tensor in outputs),
        ),
        weight_inputs=network.weight_inputs,
        activation_bytes=plan.activation_bytes,
    )


def _tensor(trt: Any, tensor: Any, mode: Literal["input", "output"]) -> IoTensor:
    return IoTensor(
        name=tensor.name,
        mode=mode,
        dtype=str(torch_dtype(trt, tensor.dtype)).removeprefix("torch."),
        shape=tuple(_size(tensor, axis, size) for axis, size in enumerate(tuple(tensor.shape))),
    )


def _size(tensor: Any, axis: int, size: int) -> str:
    return str(size) if size >= 0 else DIMENSIONS[axis]


def write_facts(folder: Path, facts: PlanFacts) -> None:
    """Beside the plan."""
    (folder / FACTS).write_text(json.dumps(asdict(facts), sort_keys=True))


def read_facts(folder: Path, unit: Unit) -> PlanFacts:
    """Of one of an engine's plans."""
    return from_json(PlanFacts, json.loads(unit_file(folder, unit, FACTS).read_text()))
