"""Frozen dataclasses from plain JSON data, strictly: no field unknown, missing or of another type."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from builders.errors import ConfigError

T = TypeVar("T")


def from_json(cls: type[T], data: object) -> T:
    """The inverse of `dataclasses.asdict`, for data that may come from anywhere."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{cls.__name__}: expected an object, got {type(data).__name__}")
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
    unknown = sorted(map(str, data.keys() - fields.keys()))
    missing = sorted(name for name, field in fields.items() if name not in data and _is_required(field))
    if unknown:
        raise ConfigError(f"{cls.__name__}: unknown fields {unknown}; there are {', '.join(sorted(fields))}")
    if missing:
        raise ConfigError(f"{cls.__name__}: missing fields {missing}")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _value(f"{cls.__name__}.{name}", hints[name], data[name]) for name in data})


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _value(where: str, hint: Any, value: Any) -> Any:
    options, origin = typing.get_args(hint), typing.get_origin(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        (hint,) = (option for option in options if option is not types.NoneType)
        return None if value is None else _value(where, hint, value)
    if origin is Literal:
        return _checked(where, value in options, value, f"one of {', '.join(map(str, options))}")
    if origin is tuple:
        items = _checked(where, isinstance(value, list | tuple), value, "a list")
        return tuple(_value(where, options[0], item) for item in items)
    if origin is list:
        items = _checked(where, isinstance(value, list), value, "a list")
        return [_value(where, options[0], item) for item in items]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _checked(where, isinstance(value, Mapping), value, "an object")
        return {name: _value(f"{where}.{name}", options[1], item) for name, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), value)
    if hint is float and type(value) is int:
        return float(value)
    if hint is Path:
        return Path(_checked(where, type(value) is str, value, "a path"))
    return _checked(where, type(value) is hint, value, f"of type {hint.__name__}")


def _checked(where: str, good: bool, value: Any, rule: str) -> Any:
    if not good:
        raise ConfigError(f"{where}={value!r}: must be {rule}")
    return value
