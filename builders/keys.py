"""Content keys: the sha256 of everything that decides what an artifact is."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from builders.errors import ArtifactError

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"

_KEY = re.compile("[0-9a-f]{64}")
_KIND = re.compile("[a-z][a-z0-9_-]*")


@dataclass(frozen=True)
class Recipe:
    """What an artifact is made from; the key follows from it, so the two cannot disagree."""

    kind: str
    """What sort of artifact this is: `checkpoint`, `torch-program`, `tensorrt-plan`, ..."""
    inputs: Mapping[str, Json]
    """Everything that changes the bytes: source hashes, spec, limits, target, versions."""

    def __post_init__(self) -> None:
        if not (isinstance(self.kind, str) and _KIND.fullmatch(self.kind)):
            raise ArtifactError(f"kind={self.kind!r}: must be lower-case letters, digits, - and _")
        # A copy of our own: the key must not move when the caller changes its dictionary later.
        object.__setattr__(self, "inputs", plain_object(self.inputs, "inputs"))

    @property
    def key(self) -> str:
        """64 hexadecimal digits."""
        return content_key(kind=self.kind, inputs=self.inputs)


def content_key(**inputs: Json) -> str:
    """sha256 of the inputs' canonical JSON: equal exactly when the inputs are equal JSON values."""
    text = json.dumps(plain(inputs, ""), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def check_key(key: str) -> str:
    """The key itself, or an error: a key becomes a folder name."""
    if not _KEY.fullmatch(key):
        raise ArtifactError(f"{key!r}: not a content key; give 64 lower-case hexadecimal digits")
    return key


def plain(value: Json, where: str) -> Json:
    """The value in the form that JSON reads back: lists for tuples, 1 for 1.0 and 0 for -0.0."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return _number(value, where)
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        return plain_object(value, where)
    raise ArtifactError(
        f"{where.lstrip('.')}={value!r}: {type(value).__name__} has no JSON form; convert it first"
    )


def plain_object(value: Mapping[str, Json], where: str) -> dict[str, Json]:
    """`plain` of an object, as a copy."""
    if not isinstance(value, Mapping):
        raise ArtifactError(f"{where}={value!r}: must be an object")
    return {_name(name, where): plain(item, f"{where}.{name}") for name, item in value.items()}


def _number(value: float, where: str) -> int | float:
    if not math.isfinite(value):
        raise ArtifactError(f"{where.lstrip('.')}={value}: must be finite; use null or a string")
    return int(value) if value.is_integer() else value


def _name(name: object, where: str) -> str:
    if type(name) is not str:
        raise ArtifactError(f"{where.lstrip('.')}[{name!r}]: names must be strings; use str(...)")
    return name
