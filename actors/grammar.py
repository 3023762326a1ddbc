"""What a text must be, as it travels: the source of a grammar, which ranks that choose compile themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """Equal ones are compiled once."""

    kind: Literal["json_schema", "regex", "lark"]
    """What the text is: JSON of a schema, a regular expression for all of a text, or llguidance's own kind of
    Lark, which names special tokens."""
    text: str
