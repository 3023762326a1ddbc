"""What a text must be, as it travels: the source of a grammar, which ranks that choose compile themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

JSON_OPTIONS: dict[str, Any] = {"whitespace_pattern": r"( |\n {0,40})?"}
"""Between the parts of JSON: what models have seen, and not so much that a text could be nothing else."""


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """Equal ones are compiled once."""

    kind: Literal["json_schema", "regex", "lark"]
    """What the text is: JSON of a schema, a regular expression for all of a text, or llguidance's own kind of
    Lark, which names special tokens."""
    text: str
