"""What of a program may be joined, and what in the way of it must not be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given

from builders.fuse import fused, fused_operators
from builders.live import last_uses, live
from builders.program import Program, plain_operators, run
from tests.builders.programs import Draft, programs, summary, tensors
from tests.strategies import quick

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
    angles: tuple[str, ...] = ("one", "one", "one"),
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
    if again == "split":
        outputs.append(draft.op("getitem", made["split"], 1))
    elif again:
        outputs.append(draft.op("aten.relu", made[again][0] if again == "items" else made[again]))
    return draft.program(*outputs)


PACKED, APART = "fused.rotate_and_attend", "fused.write"


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
        ({"turned": (0, 1, 2)}, APART),
        ({"angles": ("one", "other")}, APART),
        ({"again": "split"}, APART),
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
    made = same_results(case(name))
    assert summary(made) == expected
    assert fused(made) == made


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
        ((0, 1), "half", [*GATE, "getitem"]),
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
    if kept == "half":
        outputs[kept] = draft.op("getitem", halves, 1)
    assert summary(same_results(draft.program(y, *([outputs[kept]] if kept else [])))) == expected


def test_gate_and_its_factor_of_two_layers_stay() -> None:
    draft = Draft()
    halves = [
        draft.op("aten.chunk", linear(draft, draft.given(name, X), 16), 2, -1) for name in ("one", "other")
    ]
    gate, up = (draft.op("getitem", both, index) for index, both in enumerate(halves))
    gate_again = draft.op("getitem", halves[0], 1)
    y = draft.op("aten.mul", draft.op("aten.silu", gate), up)
    made = summary(same_results(draft.program(y, gate_again)))
    assert made.count("linear") == 2 and "aten.mul" in made


def test_thirds_are_not_halves() -> None:
    draft = Draft()
    thirds = draft.op("aten.chunk", linear(draft, draft.given("x", X), 24), 3, -1)
    gate, up = (draft.op("getitem", thirds, index) for index in range(2))
    program = draft.program(draft.op("aten.mul", draft.op("aten.silu", gate), up))
    assert summary(same_results(program)) == GATE


def test_square_of_a_gated_layer_is_not_its_activation() -> None:
    draft = Draft()
    halves = draft.op("aten.chunk", linear(draft, draft.given("x", X), 16), 2, -1)
    gate, up = (draft.op("getitem", halves, index) for index in range(2))
    y = draft.op("aten.square", draft.op("aten.mul", draft.op("aten.relu", gate), up))
    # The second time, the layer is gated already.
    made = fused(same_results(draft.program(y)))
    assert summary(made) == ["linear relu gated", "aten.square"]


def test_gate_of_squared_relu() -> None:
    draft = Draft()
    halves = draft.op("aten.chunk", linear(draft, draft.given("x", X), 16), 2, -1)
    gate, up = (draft.op("getitem", halves, index) for index in range(2))
    squared = draft.op("aten.square", draft.op("aten.relu", gate))
    made = same_results(draft.program(draft.op("aten.mul", squared, up)))
    assert summary(made) == ["linear relu2 gated"]


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


def test_an_input_that_is_owned_ends_with_its_views() -> None:
    draft = Draft()
    x = draft.given("x", X)
    column = draft.op("aten.narrow", x, 1, 0, 1)
    y = draft.op("aten.relu", x)
    draft.op("aten.relu", column)
    program = draft.program(y)
    assert [sorted(names) for names in last_uses(program, owned={"x", "other"})] == [
        [],
        [],
        ["narrow", "relu_1", "x"],
    ]
    assert not any("x" in names for names in last_uses(draft.program(column), owned={"x"}))


def lookups(**changes: Any) -> Program:
    """As of a table of which this rank holds some rows, scaled, and with positions; and what may differ."""
    draft = Draft()
    ids, first = draft.given("ids", ("tokens",), "int64"), draft.given("first", (), "int64")
    local = draft.op("aten.sub", ids, first)
    low = draft.op("aten.ge", local, changes.get("low", 0))
    high = draft.op("aten.lt", local, changes.get("high", 8))
    mask = draft.op("aten.unsqueeze", draft.op("aten.logical_and", low, high), 1)
    row = draft.op("aten.clamp", local, 0, changes.get("last", 7))
    x = draft.op("aten.embedding", draft.weight("8", "8"), row)
    x = draft.op("aten.mul", x, draft.op("aten.to", mask, {"dtype": changes.get("dtype", "float32")}))
    positions = draft.given("positions", ("tokens",), "int64")
    learned = draft.op("aten.embedding", draft.weight("8", "8"), positions)
    if changes.get("scaled") == "positions":
        learned = draft.op("aten.mul", learned, 3.0)
    y = draft.op("aten.add", draft.op("aten.mul", x, 2.0), learned)
    outputs = {"": [], "local": [local], "mask": [mask]}[changes.get("kept", "")]
    return draft.program(draft.op("aten.mul", y, 0.5) if changes.get("scaled") == "sum" else y, *outputs)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, []),
        ({"scaled": "sum"}, ["aten.mul"]),
        ({"scaled": "positions"}, ["fused.embed", "aten.add"]),
        ({"low": 1}, ["aten.mul"]),
        ({"high": 7}, ["aten.mul"]),
        ({"last": 6}, ["aten.mul"]),
        ({"dtype": "float64"}, ["aten.mul"]),
        ({"kept": "local"}, ["aten.mul"]),
        ({"kept": "mask"}, ["aten.mul"]),
    ],
    ids=str,
)
def test_lookups(changes: dict[str, Any], kept: list[str]) -> None:
    """One, unless something of it is another thing or needed elsewhere."""
    fully = same_results(lookups(**changes))
    made = summary(fully)
    assert fused(fully) == fully
    assert "fused.embed" in made and set(kept) <= set(made)
    assert kept or made == ["fused.embed"]
