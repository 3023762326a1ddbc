"""Messages and tools as chat templates expect them."""

from __future__ import annotations

from typing import Any

import msgspec

from cluster.api_errors import invalid
from cluster.api_requests import ChatBody, Message, Tool, ToolCall
from cluster.tools import choice_of_tools


def messages_of(messages: list[Message]) -> list[dict[str, Any]]:
    """What is given of every message, and nothing else."""
    return [_message(number, message) for number, message in enumerate(messages)]


def tools_of(body: ChatBody) -> list[dict[str, Any]] | None:
    """As they are, unless they are not to be used."""
    return None if choice_of_tools(body) == "none" else plain_tools(body.tools)


def plain_tools(tools: list[Tool] | None) -> list[dict[str, Any]] | None:
    return msgspec.to_builtins(tools) if tools else None


def _message(number: int, message: Message) -> dict[str, Any]:
    """Templates know no developers: what they say is the system's."""
    role = "system" if message.role == "developer" else message.role
    found: dict[str, Any] = {"role": role, "content": _content(number, message)}
    for name in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(message, name)) is not None:
            found[name] = value
    if message.tool_calls:
        found["tool_calls"] = [_call(call) for call in message.tool_calls]
    return found


def _content(number: int, message: Message) -> str:
    """Parts are lines of one text."""
    where = f"messages[{number}].content"
    if message.content is None and message.role != "assistant":
        raise invalid(f"Missing required parameter: '{where}'.", where, "missing_required_parameter")
    if not isinstance(message.content, list):
        return message.content or ""
    for place, part in enumerate(message.content):
        if part.type != "text" or part.text is None:
            raise invalid(
                f"Invalid value for '{where}[{place}]': parts of type {part.type[:32]!r} are not taken; use "
                '{"type": "text", "text": ...}',
                f"{where}[{place}]",
                "invalid_value",
            )
    return "\n".join(part.text or "" for part in message.content)


def _call(call: ToolCall) -> dict[str, Any]:
    """Templates write arguments as JSON themselves."""
    function = {"name": call.function.name, "arguments": _arguments(call.function.arguments)}
    return {"id": call.id, "type": call.type, "function": function}


def _arguments(text: str) -> Any:
    """Those that are no object stay as they are."""
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text
    return found if isinstance(found, dict) else text
