"""How models write calls of tools: found in their chat templates, or configured."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from actors.grammar import JSON_OPTIONS, Grammar
from builders.errors import UserError

ToolFormatName = Literal["hermes", "llama3_json", "none"]


@dataclass(frozen=True, kw_only=True)
class ToolFormat:
    """Of one call: an object of a name and arguments, in JSON."""

    name: ToolFormatName
    begin: str
    """What stands before it; where it may be left out, the object begins the text."""
    end: str = ""
    arguments: str
    """The key of the arguments."""
    between: str
    """Two calls."""
    always_marked: bool
    """`begin` is never left out."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Words that texts have to show, though they may be special tokens."""
        return tuple(mark for mark in (self.begin, self.end) if mark)


FORMATS: Mapping[str, ToolFormat] = {
    "hermes": ToolFormat(
        name="hermes",
        begin="<tool_call>",
        end="</tool_call>",
        arguments="arguments",
        between="\n",
        always_marked=True,
    ),
    "llama3_json": ToolFormat(
        name="llama3_json", begin="<|python_tag|>", arguments="parameters", between="; ", always_marked=False
    ),
}


def takes_tools(template: str | None) -> bool:
    return template is not None and re.search(r"\btools\b", template) is not None


def tool_format(template: str | None, name: ToolFormatName | None) -> ToolFormat | None:
    """The one of this name, or else the template's own; None where texts are not looked into."""
    if name == "none":
        return None
    if name is not None:
        if name not in FORMATS:
            raise UserError(f"tool_format={name}: must be none, {' or '.join(FORMATS)}")
        return FORMATS[name]
    if template and "<tool_call>" in template:
        return FORMATS["hermes"]
    is_llama = template and '"parameters": ' in template and "<|start_header_id|>" in template
    return FORMATS["llama3_json"] if is_llama else None


@dataclass(frozen=True, kw_only=True)
class Callable:
    """A function that a model may call."""

    name: str
    parameters: Any
    """A JSON schema of its arguments."""
    is_strict: bool
    """All of the schema is to be kept, or refused; else what no grammar can keep is left out."""


def calls_grammar(
    form: ToolFormat, tools: Sequence[Callable], *, several: bool, special: frozenset[str], answer: Any = None
) -> Grammar:
    """Of one call or more of these; or, if a schema is given for it, of an answer in place of calls."""
    begin, end = (_mark(mark, special) for mark in (form.begin, form.end))
    line = json.dumps("\n")
    whole = f"{begin} {line} object {line} {end}" if form.always_marked else "object"
    more = f" ({json.dumps(form.between)} call)*" if several else ""
    rules = [f"calls: call{more}", f"call: {whole}", f"object: %json {json.dumps(_schema(form, tools))}"]
    if answer is not None:
        rules.append(f"answer: %json {json.dumps(answer | {'x-guidance': JSON_OPTIONS})}")
    start = "start: calls" if answer is None else "start: calls | answer"
    return Grammar(kind="lark", text="\n".join([start, *rules, ""]))


def _mark(mark: str, special: frozenset[str]) -> str:
    """Special tokens are no text."""
    return mark if mark in special or not mark else json.dumps(mark)


def _schema(form: ToolFormat, tools: Sequence[Callable]) -> dict[str, Any]:
    arguments = {f"arguments{n}": _moved(tool.parameters, f"arguments{n}") for n, tool in enumerate(tools)}
    return {
        "anyOf": [_call(form, tool.name, f"#/$defs/arguments{n}") for n, tool in enumerate(tools)],
        "$defs": arguments,
        "x-guidance": JSON_OPTIONS | {"lenient": not any(tool.is_strict for tool in tools)},
    }


def _call(form: ToolFormat, name: str, arguments: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, form.arguments: {"$ref": arguments}},
        "required": ["name", form.arguments],
        "additionalProperties": False,
    }


def _moved(part: Any, to: str) -> Any:
    """A schema whose root is another's definition."""
    if isinstance(part, list):
        return [_moved(one, to) for one in part]
    if not isinstance(part, dict):
        return part
    found = {key: _moved(value, to) for key, value in part.items()}
    if isinstance(ref := found.get("$ref"), str) and ref.startswith("#"):
        found["$ref"] = f"#/$defs/{to}{ref[1:]}"
    return found
