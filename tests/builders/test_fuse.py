"""Which instructions are joined into which, and which must not be."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given

from builders.export import Graphs, export_rank
from builders.fuse import fused, fused_operators
from builders.fuse.types import value_types
from builders.live import last_uses, live
from builders.mapping import Mapping
from builders.program import Program, TensorType, plain_operators, run
from tests.beyond import BEYOND, spec_of
from tests.builders.programs import Draft, programs, tensors
from tests.oracle import MODELS
from tests.strategies import quick

WHOLE, HALVES = Mapping(), Mapping(tp_size=2)


@functools.cache
def exported(name: str, mapping: Mapping = WHOLE, dtype: torch.dtype = torch.float32) -> Graphs:
    return export_rank(spec_of(name), mapping, 0, dtype, 4)


def block(name: str, mapping: Mapping = WHOLE) -> list[str]:
    return summary(fused(exported(name, mapping).blocks[0]))


def summary(program: Program) -> list[str]:
    """Operators, with what a linear layer has absorbed."""
    return [described(step.args) if step.op == "fused.linear" else step.op for step in program.instructions]


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


ATTENTION = ["fused.rotate_and_write", "fused.attend", "aten.flatten"]
ALL_REDUCE = ["rankforge.all_reduce", "aten.add"]


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


def test_sums_over_ranks_stay_before_their_residual() -> None:
    assert block("llama2-gqa", HALVES) == [
        "rms linear",
        *ATTENTION,
        "linear",
        *ALL_REDUCE,
        "rms linear silu gated",
        "linear",
        *ALL_REDUCE,
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
        ("llama2-gqa", "vocab", ["fused.embed", "rankforge.all_reduce"]),
        ("gpt2", "vocab", ["fused.embed", "rankforge.all_reduce", "fused.embed", "aten.add"]),
        ("embedding-scale", "vocab", ["fused.embed", "rankforge.all_reduce", "aten.mul"]),
        ("embedding-scale", "hidden", ["fused.embed", "rankforge.all_gather", "aten.mul"]),
    ],
)
def test_embedding(name: str, split: Any, operators: list[str]) -> None:
    mapping = WHOLE if split == "none" else replace(HALVES, embedding_split=split)
    embed = exported(name, mapping).embed
    assert embed is not None
    assert summary(fused(embed)) == operators


DENSE, EXPERTS = (7, 11), (9, 12)
SIZES = {
    **dict.fromkeys([name for name in (*MODELS, *BEYOND) if spec_of(name).moe is None], DENSE),
    **dict.fromkeys([name for name in (*MODELS, *BEYOND) if spec_of(name).moe is not None], EXPERTS),
    "mpt-qk-norm-whole": (17, 65),
    "mpt-qk-norm-whole-rms": (16, 64),
    "mpt-qk-norm-head": (16, 20),
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
        "attention.q": ("tokens", "4", "12"),
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


X = ("tokens", "8")


def same_results(program: Program) -> Program:
    """The fused program, once it is known to compute the same to the last bit."""
    made = fused(program)
    bound = tensors(program)
    ours, theirs = ({name: value.clone() for name, value in bound.items()} for _ in range(2))
    expected = run(program, plain_operators(), theirs)
    found = run(made, {**plain_operators(), **fused_operators()}, ours)
    for a, b in zip([*found, *ours.values()], [*expected, *theirs.values()], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    return made


def attention(
    order: tuple[int, int, int] = (0, 1, 2),
    turned: tuple[int, ...] = (0, 1),
    clip: tuple[float, float] | None = None,
    again: str | None = None,
    angles: tuple[str, str] = ("one", "one"),
) -> Program:
    """Two heads of queries and one of keys and values; `again` is read twice."""
    draft = Draft()
    made: dict[str, Any] = {"qkv": draft.given("qkv", ("tokens", "16"))}
    cosines = {name: [draft.given(f"{name}_{f}", ("tokens", "2")) for f in "cs"] for name in set(angles)}
    cache = [draft.given(name, ("blocks", "4", "1", "4")) for name in ("k_cache", "v_cache")]
    shapes = {
        "positions": ("tokens",),
        "sequences": ("tokens",),
        "lengths": ("batch",),
        "block_table": ("batch", "table"),
    }
    step = [draft.given(name, shape, "int64") for name, shape in shapes.items()]
    made["clamp"] = draft.op("aten.clamp", made["qkv"], *clip) if clip else made["qkv"]
    made["split"] = draft.op("aten.split_with_sizes", made["clamp"], [8, 4, 4], -1)
    made["items"] = [draft.op("getitem", made["split"], index) for index in range(3)]
    heads = [draft.op("aten.unflatten", item, -1, [-1, 4]) for item in made["items"]]
    made["heads"] = heads[0]
    parts = [heads[index] for index in order]
    for place, name in zip(turned, angles, strict=False):
        parts[place] = draft.op("rankforge.rotate", parts[place], *cosines[name])
    made["rotated"] = parts[0]
    made["out"] = draft.op("rankforge.attention", *parts, *cache, *step, None, None, None, 0.5, 0)
    outputs = [made["out"]]
    if again:
        outputs.append(draft.op("aten.relu", made[again][0] if again == "items" else made[again]))
    return draft.program(*outputs)


PACKED, APART = "fused.rotate_and_write", "fused.write"


@pytest.mark.parametrize(
    ("changes", "how"),
    [
        ({}, PACKED),
        ({"turned": ()}, PACKED),
        ({"clip": (-0.5, 0.5)}, PACKED),
        ({"clip": (-0.5, 0.25)}, PACKED),  # and the clamp stays
        ({"clip": (-0.5, 0.5), "again": "clamp"}, PACKED),
        ({"again": "qkv"}, PACKED),
        ({"order": (0, 2, 1)}, APART),
        ({"turned": (0,)}, APART),
        ({"turned": (0, 2)}, APART),
        ({"angles": ("one", "other")}, APART),
        ({"again": "items"}, APART),
        ({"again": "heads"}, APART),
        ({"again": "rotated"}, APART),
    ],
    ids=str,
)
def test_what_may_stand_between_projection_and_attention(changes: dict[str, Any], how: str) -> None:
    made = summary(same_results(attention(**changes)))
    assert [op for op in made if op in (PACKED, APART, "rankforge.attention")] == [how]


def test_clamp_that_is_no_limit_of_both_signs_or_read_elsewhere_stays() -> None:
    for changes in ({"clip": (-0.5, 0.25)}, {"clip": (-0.5, 0.5), "again": "clamp"}):
        made = fused(attention(**changes))  # type: ignore[arg-type]
        (write,) = (step for step in made.instructions if step.op == PACKED)
        assert write.args[0] == {"value": "clamp"} and write.args[-1] is None
    made = fused(attention(clip=(-0.5, 0.5)))
    assert made.instructions[0].args[0] == {"value": "qkv"} and made.instructions[0].args[-1] == 0.5


def test_the_cache_is_written_even_where_nothing_reads_what_was_attended() -> None:
    program = replace(attention(), outputs=("qkv",))
    assert [step.op for step in live(program).instructions][-1] == "rankforge.attention"
    assert summary(same_results(program)) == [PACKED]


Made = Any


def normed(draft: Draft) -> tuple[Made, Made]:
    x = draft.given("x", X)
    return x, draft.op("aten.rms_norm", x, [8], draft.weight("8"), 1e-6)


def linear(draft: Draft, x: Made, rows: int = 8) -> Made:
    return draft.op("aten.linear", x, draft.weight(str(rows), "8"))


def case(name: str) -> Program:
    """A pattern with something in the way."""
    draft = Draft()
    x, norm = normed(draft)
    y = linear(draft, norm)
    if name == "norm is an output":
        return draft.program(norm, y)
    if name == "norm is read by an addition":
        return draft.program(y, draft.op("aten.add", norm, norm))
    if name == "norm is the residual":
        return draft.program(draft.op("aten.add", norm, y))
    if name == "two linear layers read the norm":
        return draft.program(y, linear(draft, norm))
    if name == "product is an output":
        return draft.program(draft.op("aten.add", x, y), y)
    if name == "product is added to itself":
        return draft.program(draft.op("aten.add", y, y))
    if name == "product is activated twice":
        return draft.program(draft.op("aten.silu", y), draft.op("aten.relu", y))
    if name == "a vector is added":
        return draft.program(draft.op("aten.add", y, draft.weight("8")))
    if name == "a column is added":
        return draft.program(draft.op("aten.add", y, draft.given("column", ("tokens", "1"))))
    if name == "another type is added":
        return draft.program(draft.op("aten.add", y, draft.given("wide", X, "float64")))
    if name == "a multiple is added":
        return draft.program(draft.op("aten.add", x, y, alpha=2))
    if name == "the sum is activated":
        return draft.program(draft.op("aten.relu", draft.op("aten.add", x, y)))
    if name == "the activated are added":
        return draft.program(draft.op("aten.add", x, draft.op("aten.relu", y)))
    assert name == "two residuals", "a case of the table below"
    return draft.program(draft.op("aten.add", x, draft.op("aten.add", x, y)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("norm is an output", ["aten.rms_norm", "linear"]),
        ("norm is read by an addition", ["aten.rms_norm", "linear", "aten.add"]),
        ("norm is the residual", ["aten.rms_norm", "linear residual"]),
        ("two linear layers read the norm", ["rms linear", "rms linear"]),
        ("product is an output", ["rms linear", "aten.add"]),
        ("product is added to itself", ["rms linear", "aten.add"]),
        ("product is activated twice", ["rms linear", "aten.silu", "aten.relu"]),
        ("a vector is added", ["rms linear", "aten.add"]),
        ("a column is added", ["rms linear", "aten.add"]),
        ("another type is added", ["rms linear", "aten.add"]),
        ("a multiple is added", ["rms linear", "aten.add"]),
        ("the sum is activated", ["rms linear residual", "aten.relu"]),
        ("the activated are added", ["rms linear relu residual"]),
        ("two residuals", ["rms linear residual", "aten.add"]),
    ],
)
def test_only_what_nothing_else_needs_is_absorbed(name: str, expected: list[str]) -> None:
    assert summary(same_results(case(name))) == expected


GATE = ["linear", "aten.chunk", "getitem", "getitem", "aten.silu", "aten.mul"]


@pytest.mark.parametrize(
    ("order", "kept", "expected"),
    [
        ((0, 1), None, ["linear silu gated"]),
        ((1, 0), None, GATE),  # the rows of the gate come first, or it is another layout of weights
        ((0, 0), None, ["linear", "aten.chunk", "getitem", "aten.silu", "aten.mul"]),
        ((0, 1), "product", GATE),
        ((0, 1), "gate", GATE),
        ((0, 1), "activated", GATE),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_gates(order: tuple[int, int], kept: str | None, expected: list[str], swapped: bool) -> None:
    draft = Draft()
    product = linear(draft, draft.given("x", X), 16)
    halves = draft.op("aten.chunk", product, 2, -1)
    parts = [draft.op("getitem", halves, index) for index in range(2)]
    gate, up = (parts[index] for index in order)
    activated = draft.op("aten.silu", gate)
    y = draft.op("aten.mul", *((up, activated) if swapped else (activated, up)))
    outputs = {"product": product, "gate": gate, "activated": activated}
    assert summary(same_results(draft.program(y, *([outputs[kept]] if kept else [])))) == expected


@given(program=programs())
@quick
def test_any_program_stays_the_same_function(program: Program) -> None:
    made = same_results(program)
    assert len(made.instructions) <= len(program.instructions)
    assert fused(made) == made


@given(program=programs())
@quick
def test_every_result_ends_once_or_is_kept(program: Program) -> None:
    """After its last reader, and with whatever shares its memory."""
    ended = last_uses(program)
    places = {name: index for index, names in enumerate(ended) for name in names}
    assert sum(map(len, ended)) == len(places)
    for index, step in enumerate(program.instructions):
        read = {arg["value"] for arg in step.args if isinstance(arg, dict)}
        assert all(places.get(name, index) >= index for name in read | {step.out})
        if step.op in ("getitem", "aten.chunk"):
            assert places.get(step.out) == places.get(step.args[0]["value"])
    assert not places.keys() & set(program.outputs)


def test_last_uses() -> None:
    draft = Draft()
    x = draft.given("x", X)
    product = linear(draft, x, 16)
    halves = draft.op("aten.chunk", product, 2, -1)
    first, second = (draft.op("getitem", halves, index) for index in range(2))
    first = draft.op("aten.relu", first)
    unread = draft.op("aten.relu", second)
    column = draft.op("aten.narrow", x, 1, 0, 1)
    y = draft.op("aten.mul", first, column)
    z = draft.op("aten.narrow", y, 1, 0, 4)
    program = draft.program(z)
    names = [step.out for step in program.instructions]
    assert names == ["linear", "chunk", "getitem", "getitem_1", "relu", "relu_1", "narrow", "mul", "narrow_1"]
    views = ("linear", "chunk", "getitem", "getitem_1")
    assert unread == {"value": "relu_1"}
    assert last_uses(program) == ((), (), (), (), (), (*views, "relu_1"), (), ("relu",), ())
