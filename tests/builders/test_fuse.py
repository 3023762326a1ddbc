"""Which instructions are joined into which, and which must not be."""

from __future__ import annotations

import functools

import torch

from builders.export import Graphs, export_rank
from builders.families import from_transformers
from builders.fuse import fused
from builders.mapping import Mapping
from builders.program import Program
from tests.oracle import MODELS

WHOLE = Mapping()


@functools.cache
def exported(name: str, mapping: Mapping = WHOLE) -> Graphs:
    _family, spec = from_transformers(MODELS[name]().to_dict())
    return export_rank(spec, mapping, 0, torch.float32, 4)


def summary(program: Program) -> list[str]:
    """Operators, with what a linear layer has absorbed."""
    return [step.op if step.op != "fused.linear" else described(step.args) for step in program.instructions]


def described(args: tuple[object, ...]) -> str:
    _x, _weight, bias, residual, _gain, _shift, norm, _eps, activation, gated = args
    parts = (
        norm if norm != "none" else "",
        "linear",
        "bias" if bias else "",
        str(activation) if activation != "none" else "",
        "gated" if gated else "",
        "residual" if residual else "",
    )
    return " ".join(part for part in parts if part)


ATTENTION = ["fused.rotate_and_write", "fused.attend", "aten.flatten"]


def test_llama_block_is_six_kernels() -> None:
    assert summary(fused(exported("llama2-gqa").blocks[0])) == [
        "rms linear",
        *ATTENTION,
        "linear residual",
        "rms linear silu gated",
        "linear residual",
    ]
