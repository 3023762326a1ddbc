"""Calls of tools as a chat's answers have them."""

from __future__ import annotations

import secrets
from collections import defaultdict
from dataclasses import dataclass, field
from typing import cast

from msgspec import UNSET

from cluster.api_answers import CalledFunction, CalledTool, ChatMessage, Finish, FunctionDelta, ToolDelta
from cluster.growing_text import Growth
from cluster.tool_calls import Called, News, Said, ToolReader, whole
from cluster.tool_formats import ToolFormat


@dataclass
class Calls:
    """Of all texts of one request."""

    form: ToolFormat
    most: int | None = None
    """In one text."""
    _readers: defaultdict[int, ToolReader] = field(init=False)

    def __post_init__(self) -> None:
        self._readers = defaultdict(self._reader)

    def _reader(self) -> ToolReader:
        return ToolReader(self.form, self.most)

    def part(self, index: int, growth: Growth) -> tuple[str, list[ToolDelta], Finish | None]:
        """What is new of a text: what is said, what is called, and why it ends."""
        reader = self._readers[index]
        news = reader.add(growth.text, is_last=growth.finish is not None)
        said = "".join(one.text for one in news if isinstance(one, Said))
        return said, _deltas(news), _finish(growth, reader)

    def message(self, text: Growth) -> tuple[ChatMessage, Finish]:
        """A whole text."""
        reader = self._reader()
        said, calls = whole(reader.add(text.text, is_last=True))
        called = [CalledTool(_id(), CalledFunction(name, arguments)) for name, arguments in calls]
        return ChatMessage(said, tool_calls=called or UNSET), cast(Finish, _finish(text, reader))


def _finish(growth: Growth, reader: ToolReader) -> Finish | None:
    return "tool_calls" if growth.finish == "stop" and reader.num_calls else growth.finish


def _deltas(news: list[News]) -> list[ToolDelta]:
    """What is new of one call is one delta."""
    found: list[ToolDelta] = []
    for one in news:
        if isinstance(one, Called):
            found.append(ToolDelta(one.index, FunctionDelta(one.name, ""), _id(), "function"))
        elif not isinstance(one, Said):
            found.append(ToolDelta(one.index, FunctionDelta(arguments=one.text)))
    return found


def _id() -> str:
    return f"call_{secrets.token_hex(12)}"
