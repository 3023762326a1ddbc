"""JSON becomes dataclasses only when it is exactly right."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given

from builders.errors import ConfigError
from builders.plain import from_json
from builders.spec import ModelSpec
from tests.strategies import quick, specs


@dataclass(frozen=True, kw_only=True)
class Inner:
    count: int


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    kind: Literal["a", "b"]
    ratio: float = 1.0
    maybe: int | None = None
    inner: Inner | None = None
    many: tuple[Inner, ...] = ()
    named: Mapping[str, Inner] = field(default_factory=dict)
    flag: bool = False


WHOLE = Outer(
    name="x",
    kind="b",
    ratio=0.5,
    maybe=3,
    inner=Inner(count=1),
    many=(Inner(count=2), Inner(count=3)),
    named={"y": Inner(count=4)},
    flag=True,
)


@pytest.mark.parametrize("value", [WHOLE, Outer(name="x", kind="a")])
def test_comes_back_from_json(value: Outer) -> None:
    assert from_json(Outer, json.loads(json.dumps(dataclasses.asdict(value)))) == value


@quick
@given(specs())
def test_any_spec_comes_back_from_json(spec: ModelSpec) -> None:
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_whole_numbers_become_floats_where_floats_belong() -> None:
    ratio = from_json(Outer, {"name": "x", "kind": "a", "ratio": 2}).ratio
    assert ratio == 2 and type(ratio) is float


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"surprise": 1}, "surprise"),
        ({"name": 3}, "Outer.name=3"),
        ({"name": None}, "Outer.name=None"),
        ({"kind": "c"}, "Outer.kind='c'"),
        ({"kind": ["a"]}, "Outer.kind"),
        ({"ratio": "half"}, "Outer.ratio='half'"),
        ({"ratio": True}, "Outer.ratio=True"),
        ({"maybe": 1.5}, "Outer.maybe=1.5"),
        ({"maybe": True}, "Outer.maybe=True"),
        ({"flag": 1}, "Outer.flag=1"),
        ({"inner": {}}, "count"),
        ({"inner": {"count": "1"}}, "Inner.count='1'"),
        ({"inner": [1]}, "Inner: expected an object"),
        ({"many": "no list"}, "Outer.many"),
        ({"many": [{"count": 1}, {}]}, "count"),
        ({"named": [1]}, "Outer.named"),
        ({"named": {"y": 1}}, "Inner: expected an object"),
    ],
    ids=repr,
)
def test_anything_else_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_json(Outer, {"name": "x", "kind": "a", **changes})
    assert named in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["name", "kind"])
def test_missing_fields_are_named(missing: str) -> None:
    with pytest.raises(ConfigError, match=missing):
        from_json(Outer, {name: "a" for name in ("name", "kind") if name != missing})


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_only_objects_are_objects(data: object) -> None:
    with pytest.raises(ConfigError, match="expected an object"):
        from_json(Outer, data)
