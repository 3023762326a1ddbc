"""The config.json of a checkpoint or engine: format, version and content key, then the content."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from builders.errors import ArtifactError, UserError
from builders.plain import from_json


@dataclass(frozen=True, kw_only=True)
class Format:
    """What kind of folder it is, and how to make another."""

    name: str
    version: int
    remedy: str


class Content(Protocol):
    """A frozen dataclass that knows its format and its key."""

    format: ClassVar[Format]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def key(self) -> str:
        """Equal for equal content, wherever it came from."""


C = TypeVar("C", bound=Content)


def to_json(content: Content) -> dict[str, Any]:
    """Plain data, with the format and the key in front."""
    form = content.format
    head = {"format": form.name, "format_version": form.version, "key": content.key}
    return {**head, **asdict(content)}


def format_of(folder: Path) -> str | None:
    """What kind of folder this is, None where it is none of ours."""
    return _named(folder, "format")


def kind_of(folder: Path) -> str | None:
    """Which of its format's kinds, None where that is not said."""
    return _named(folder, "kind")


def _named(folder: Path, field: str) -> str | None:
    try:
        data = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, RecursionError):
        return None
    name = data.get(field) if isinstance(data, dict) else None
    return name if isinstance(name, str) else None


def read_config(cls: type[C], folder: Path) -> C:
    """The content, once it is known to be ours, of this version, and unchanged."""
    form, file = cls.format, folder / "config.json"
    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{folder}: not a {form.name} ({error}); {form.remedy}") from error
    if not isinstance(data, dict) or data.pop("format", None) != form.name:
        raise ArtifactError(f"{folder}: not a {form.name}; {form.remedy}")
    if (version := data.pop("format_version", None)) != form.version:
        raise ArtifactError(f"{file}: format version {version}, this is {form.version}; {form.remedy}")
    key = data.pop("key", None)
    try:
        content = from_json(cls, data)
    except UserError as error:
        raise ArtifactError(f"{file}: damaged ({error}); {form.remedy}") from error
    if content.key != key:
        raise ArtifactError(f"{file}: was changed after it was written; {form.remedy}")
    return content
