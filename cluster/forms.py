"""What the two kinds of answers have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypedDict

from msgspec import Struct, UnsetType

from cluster.api_answers import Usage
from cluster.growing_text import Growth


class Heading(TypedDict):
    """What every answer and every part of it begins with."""

    id: str
    created: int
    model: str
    system_fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One of a request's."""

    tokens: tuple[int, ...]
    text: str = ""
    """Where it is to be given back."""


class Form(Protocol):
    """How one request is answered: texts are numbered as they are given."""

    def part(self, index: int, growth: Growth, usage: Usage | UnsetType | None) -> Struct | None:
        """Of a stream; None where there is nothing to say."""

    def usage_part(self, usage: Usage) -> Struct:
        """The last one of a stream, if it was asked for."""

    def whole(self, texts: list[Growth], usage: Usage) -> Struct:
        """An answer that is not streamed: all of every text."""
