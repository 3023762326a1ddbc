"""Which instructions are joined into which, and which must not be."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from builders.export import Graphs, export_rank
from builders.fuse import fused
from builders.fuse.types import value_types
from builders.mapping import Mapping
from builders.program import Program, TensorType
from tests.beyond import BEYOND, spec_of
from tests.builders.programs import summary
from tests.oracle import MODELS

WHOLE, HALVES = Mapping(), Mapping(tp_size=2)


@functools.cache
def exported(name: str, mapping: Mapping = WHOLE, dtype: torch.dtype = torch.float32) -> Graphs:
    return export_rank(spec_of(name), mapping, 0, dtype, 4)


def block(name: str, mapping: Mapping = WHOLE) -> list[str]:
    return summary(fused(exported(name, mapping).blocks[0]))


ATTENTION = ["fused.rotate_and_attend", "aten.flatten"]


def test_llama() -> None:
    assert block("llama2-gqa") == [
        "rms linear", *ATTENTION, "linear residual", "rms linear silu gated", "linear residual",
    ]  # fmt: skip


def test_gpt2() -> None:
    assert block("gpt2") == [
        "layer linear bias",
        *ATTENTION,
        "linear bias residual",
        "layer linear bias gelu_tanh",
        "linear bias residual",
    ]


def test_mpt() -> None:
    assert block("mpt-clip-scale") == [
        "layer linear", *ATTENTION, "linear residual", "layer linear gelu", "linear residual",
    ]  # fmt: skip


def test_squared_relu_and_norms_without_their_one() -> None:
    assert block("nemo-relu2") == [
        "layer1p linear", *ATTENTION, "linear residual", "layer1p linear relu2", "linear residual",
    ]  # fmt: skip


def test_sums_over_ranks_take_the_residual_in() -> None:
    assert block("llama2-gqa", HALVES) == [
        "rms linear",
        *ATTENTION,
        "linear",
        "all_reduce residual",
        "rms linear silu gated",
        "linear",
        "all_reduce residual",
    ]


def test_experts_and_their_router_share_a_norm() -> None:
    assert block("mixtral") == [
        "rms linear", *ATTENTION, "linear residual", "aten.rms_norm", "linear", "rankforge.moe", "aten.add",
    ]  # fmt: skip


def test_norm_of_queries_and_keys_is_between_projection_and_cache() -> None:
    split = ["aten.split_with_sizes", *["getitem"] * 3, *["aten.unflatten"] * 3]
    assert block("mpt-qk-norm-head") == [
        "layer linear",
        *split,
        *["aten.layer_norm"] * 2,
        "fused.write",
        "fused.attend",
        "aten.flatten",
        "linear residual",
        "layer linear relu2",
        "linear residual",
    ]


def test_head_selects_rows_first() -> None:
    head = exported("head-bias").head
    assert head is not None
    assert summary(fused(head)) == [
        "aten.index_select", "layer1p linear bias", "aten.narrow", "aten.to", "aten.mul",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "split", "operators"),
    [
        ("llama2-gqa", "none", ["fused.embed"]),
        ("gpt2", "none", ["fused.embed"]),
        ("embedding-scale", "none", ["fused.embed"]),
        ("llama2-gqa", "vocab", ["fused.embed", "all_reduce"]),
        ("gpt2", "vocab", ["fused.embed", "fused.embed", "all_reduce residual"]),
        ("embedding-scale", "vocab", ["fused.embed", "all_reduce", "aten.mul"]),
        ("embedding-scale", "hidden", ["fused.embed", "rankforge.all_gather", "aten.mul"]),
    ],
)
def test_embedding(name: str, split: Any, operators: list[str]) -> None:
    mapping = WHOLE if split == "none" else replace(HALVES, embedding_split=split)
    embed = exported(name, mapping).embed
    assert embed is not None
    assert summary(fused(embed)) == operators


DENSE, EXPERTS = (6, 8), (8, 9)
SIZES = {
    **dict.fromkeys([name for name in (*MODELS, *BEYOND) if spec_of(name).moe is None], DENSE),
    **dict.fromkeys([name for name in (*MODELS, *BEYOND) if spec_of(name).moe is not None], EXPERTS),
    "mpt-qk-norm-whole": (17, 63),
    "mpt-qk-norm-whole-rms": (16, 62),
    "mpt-qk-norm-head": (16, 18),
}
"""Instructions of a fused block, alone and as one of two tensor parallel ranks."""


@pytest.mark.parametrize("name", SIZES)
def test_size_of_a_block(name: str) -> None:
    for mapping, size in zip((WHOLE, HALVES), SIZES[name], strict=True):
        for program in exported(name, mapping).blocks:
            assert len(fused(program).instructions) == size


@pytest.mark.parametrize("name", ["llama2-gqa", "mixtral", "nemo-swiglu", "mpt-qk-norm-whole-rms"])
def test_narrow_types_fuse_as_wide_ones(name: str) -> None:
    for mapping in (WHOLE, HALVES):
        (program,) = exported(name, mapping, torch.bfloat16).blocks
        assert summary(fused(program)) == block(name, mapping)


def test_types_of_all_values() -> None:
    types = value_types(fused(exported("llama2-gqa", WHOLE, torch.bfloat16).blocks[0]))
    shapes = {
        "linear": ("tokens", "96"),
        "attention": ("tokens", "4", "12"),
        "flatten": ("tokens", "48"),
        "add": ("tokens", "48"),
        "mul": ("tokens", "72"),
        "add_1": ("tokens", "48"),
        "cache_k": ("blocks", "4", "2", "12"),
    }
    assert {name: types[name] for name in shapes} == {
        name: TensorType(dtype="bfloat16", shape=shape) for name, shape in shapes.items()
    }
    head = exported("llama2-gqa", WHOLE, torch.bfloat16).head
    assert head is not None
    assert value_types(fused(head))["to"] == TensorType(dtype="float32", shape=("wanted", "101"))


@pytest.mark.parametrize("name", ["llama2-gqa", "gpt2", "nemo-relu2", "mpt-qk-norm-whole"])
def test_stored_programs_fuse_as_fresh_ones(name: str) -> None:
    program = exported(name).blocks[0]
    stored = Program.from_json(json.loads(json.dumps(program.to_json())))
    made = fused(stored)
    assert made == fused(program)
    assert Program.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize("name", ["llama2-gqa", "mixtral", "mpt-qk-norm-head"])
def test_fused_programs_are_given_what_the_exported_ones_are(name: str) -> None:
    program = exported(name).blocks[0]
    made = fused(program)
    assert replace(made, instructions=()) == replace(program, instructions=())
