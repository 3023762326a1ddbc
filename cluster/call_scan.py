"""A call of a tool as its JSON comes: its name, and its arguments as they are written."""

from __future__ import annotations

import json
from dataclasses import dataclass

_SPACE = " \n\t\r"


@dataclass
class CallScan:
    """One object. Only as much of JSON is looked at as tells where keys and values begin and end."""

    arguments_key: str
    name: str | None = None
    has_begun: bool = False
    """The arguments have."""
    is_done: bool = False
    is_wrong: bool = False
    """It is no object."""
    _depth: int = 0
    _in_text: bool = False
    _is_escaped: bool = False
    _key: str | None = None
    """Whose value is read; None before and between keys."""
    _part: str = ""
    """Of a key or of a value, as written."""
    _new: str = ""
    """Of the arguments, and not taken yet."""
    _is_value: bool = False
    _is_quoted: bool = False
    """The arguments are a text, which says what they are."""

    def add(self, text: str) -> int:
        """Characters that belong to the object."""
        if self.is_done:
            return 0
        for place, character in enumerate(text):
            self._take(character)
            if self.is_done or self.is_wrong:
                return place + 1
        return len(text)

    def taken(self) -> str:
        """What is new of the arguments. Those that are a text are taken once they are whole."""
        if self._is_quoted and not self.is_done:
            return ""
        new, self._new = self._new, ""
        return new

    def nothing(self) -> str:
        """What is written for no arguments, once."""
        self.has_begun = True
        return "{}"

    def _take(self, character: str) -> None:
        if self._depth == 0:
            self._is_opened(character)
        elif self._in_text:
            self._in_quotes(character)
        elif character == '"':
            self._in_text = True
            self._keep(character)
        elif self._depth == 1:
            self._between(character)
        else:
            self._inside(character)

    def _is_opened(self, character: str) -> None:
        if character == "{":
            self._depth = 1
        elif character not in _SPACE:
            self.is_wrong = True

    def _in_quotes(self, character: str) -> None:
        self._keep(character)
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        elif character == '"':
            self._in_text = False

    def _between(self, character: str) -> None:
        """Keys and values of the object itself."""
        if character == ":" and not self._is_value:
            self._key, self._part, self._is_value = _plain(self._part), "", True
            self.is_wrong = self._key is None
        elif character in ",}":
            self._ends_value()
            self.is_done = character == "}"
            if self.is_done and self._is_quoted:
                self._new = _plain(self._new) or ""
        elif character in "{[":
            self._depth += 1
            self._keep(character)
        elif character not in _SPACE:
            self._keep(character)

    def _inside(self, character: str) -> None:
        self._depth += (character in "{[") - (character in "}]")
        self._keep(character)

    def _keep(self, character: str) -> None:
        if self._is_value and self._key in (self.arguments_key, "arguments", "parameters"):
            self._is_quoted = self._is_quoted if self.has_begun else character == '"'
            self._new += character
            self.has_begun = True
        else:
            self._part += character

    def _ends_value(self) -> None:
        if self._key == "name" and self._is_value:
            self.name = _plain(self._part)
        self._key, self._part, self._is_value = None, "", False


def _plain(quoted: str) -> str | None:
    """What a JSON string says; None where it is none."""
    try:
        found = json.loads(quoted)
    except ValueError:
        return None
    return found if isinstance(found, str) else None
