"""Content keys move exactly when what they are made of moves."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.errors import ArtifactError
from builders.keys import Recipe, check_key, content_key

# Few distinct values, many of them confusable, so that equal and nearly equal inputs do come up.
CONFUSABLE = st.sampled_from([None, True, False, 0, 1, 1.0, -0.0, 0.5, "", "0", "1", "null", "é"])
SCALARS = CONFUSABLE | st.integers() | st.text(max_size=3) | st.floats(allow_nan=False).filter(math.isfinite)
NAMES = st.sampled_from("abc") | st.text(max_size=3)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(NAMES, inner, max_size=3)
    ),
    max_leaves=6,
)
INPUTS = st.dictionaries(NAMES, VALUES, max_size=4)
quick = settings(deadline=None, max_examples=200)


def same(left: Any, right: Any) -> bool:
    """Equality of JSON values, written independently of the code under test."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    return bool(left == right)


def backwards(value: Any) -> Any:
    """The same value, every object in it written in the opposite order."""
    if isinstance(value, dict):
        return {name: backwards(value[name]) for name in reversed(value)}
    return [backwards(item) for item in value] if isinstance(value, list | tuple) else value


@quick
@given(INPUTS, NAMES, VALUES)
def test_key_changes_exactly_when_an_input_changes(inputs: dict[str, Any], name: str, value: Any) -> None:
    changed = {**inputs, name: value}
    unchanged = name in inputs and same(inputs[name], value)
    assert (content_key(**inputs) == content_key(**changed)) == unchanged


@quick
@given(INPUTS, INPUTS, NAMES)
def test_key_changes_exactly_when_something_nested_changes(
    left: dict[str, Any], right: dict[str, Any], name: str
) -> None:
    keys = [content_key(outer={name: [inner]}) for inner in (left, right)]
    assert (keys[0] == keys[1]) == same(left, right)


@quick
@given(INPUTS)
def test_key_ignores_order_and_survives_json(inputs: dict[str, Any]) -> None:
    key = content_key(**inputs)
    assert key == content_key(**backwards(inputs)) == content_key(**json.loads(json.dumps(inputs)))
    assert check_key(key) == key


def test_key_is_the_same_in_every_version() -> None:
    """A key that moves throws every cache away; change this only on purpose."""
    key = content_key(spec={"norm_eps": 1e-5, "rope": [10000.0, None]}, tp_size=2)
    text = b'{"spec":{"norm_eps":1e-05,"rope":[10000,null]},"tp_size":2}'
    assert key == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (math.nan, "inputs.a"),
        (math.inf, "inputs.a"),
        ({"b": -math.inf}, "inputs.a.b"),
        ([1, {2}], "inputs.a[1]"),
        (b"bytes", "inputs.a"),
        ({1: "integer name"}, "inputs.a[1]"),
        (object(), "inputs.a"),
        (type("Text", (str,), {})("subclass"), "inputs.a"),
    ],
)
def test_values_without_a_json_form_are_refused_by_name(value: Any, where: str) -> None:
    with pytest.raises(ArtifactError) as refusal:
        Recipe("engine", {"a": value})
    assert str(refusal.value).startswith(where) and "\n" not in str(refusal.value)


def test_recipe_key_covers_its_kind_and_a_copy_of_its_inputs() -> None:
    inputs = {"layers": [1, 2]}
    recipe = Recipe("engine", inputs)
    key = recipe.key
    inputs["layers"].append(3)
    assert recipe.key == key == Recipe("engine", {"layers": (1, 2)}).key
    assert len({key, Recipe("plan", {"layers": [1, 2]}).key, Recipe("engine", inputs).key}) == 3
    assert recipe == dataclasses.replace(recipe)


@pytest.mark.parametrize("kind", ["", "Engine", "a/b", "../x", "a\n", 3])
def test_kinds_are_plain_words(kind: Any) -> None:
    with pytest.raises(ArtifactError, match="kind="):
        Recipe(kind, {})


@pytest.mark.parametrize("key", ["", "0" * 63, "0" * 64 + "\n", "A" * 64, "../" + "0" * 61])
def test_keys_are_checked_before_they_become_paths(key: str) -> None:
    with pytest.raises(ArtifactError, match="not a content key"):
        check_key(key)
