"""What form a body asks of its texts: OpenAI's `response_format`, and other servers' names for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from actors.grammar import Grammar
from cluster.api_errors import invalid
from cluster.api_requests import GenerateBody, ResponseFormat, StructuredOutputs

_SPECIAL = frozenset(r"\.+*?()|[]{}^$&~#-")
"""What means more than itself in a regular expression."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """A grammar, and the field that asks for it."""

    grammar: Grammar
    param: str


def form_of(body: GenerateBody) -> Form | None:
    """None where texts may be anything."""
    found = [*_forms(body)]
    if len(found) > 1:
        names = " and ".join(f"'{one.param}'" for one in found)
        raise invalid(f"{names} are both given; a text has one form.", found[1].param, "invalid_value")
    if found and body.use_beam_search:
        raise invalid(f"'{found[0].param}' is not possible with 'use_beam_search'.", found[0].param)
    return found[0] if found else None


def _forms(body: GenerateBody) -> Iterator[Form]:
    if body.response_format and (form := _formatted(body.response_format)):
        yield form
    if body.guided_json is not None:
        yield schema_form(body.guided_json, "guided_json")
    if body.guided_regex is not None:
        yield _pattern(body.guided_regex, "guided_regex")
    if body.guided_choice is not None:
        yield _choice(body.guided_choice, "guided_choice")
    if body.structured_outputs:
        yield from _structured(body.structured_outputs)


def _formatted(wanted: ResponseFormat) -> Form | None:
    if wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return schema_form(wanted.schema or {"type": "object"}, "response_format")
    if wanted.type != "json_schema":
        raise invalid(
            f"Invalid value for 'response_format.type': {wanted.type[:32]!r}. Supported values are: 'text', "
            "'json_object' and 'json_schema'.",
            "response_format.type",
            "invalid_value",
        )
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        where = "response_format.json_schema" + (".schema" if wanted.json_schema else "")
        raise invalid(f"Missing required parameter: '{where}'.", where, "missing_required_parameter")
    return schema_form(wanted.json_schema.schema, "response_format")


def _structured(wanted: StructuredOutputs) -> Iterator[Form]:
    name = "structured_outputs"
    if wanted.json is not None:
        yield schema_form(wanted.json, f"{name}.json")
    if wanted.regex is not None:
        yield _pattern(wanted.regex, f"{name}.regex")
    if wanted.choice is not None:
        yield _choice(wanted.choice, f"{name}.choice")
    if wanted.json_object:
        yield schema_form({"type": "object"}, f"{name}.json_object")


def schema_form(schema: str | dict[str, Any], param: str) -> Form:
    """A text, or what JSON makes of it."""
    try:
        found = msgspec.json.decode(schema) if isinstance(schema, str) else schema
        text = msgspec.json.encode(found).decode()
    except (msgspec.DecodeError, RecursionError) as error:
        raise invalid(f"Invalid '{param}': {error}", param, "invalid_value") from None
    if not isinstance(found, dict):
        raise invalid(f"Invalid '{param}': a JSON schema is an object", param, "invalid_value")
    return Form(grammar=Grammar(kind="json_schema", text=text), param=param)


def _pattern(pattern: str, param: str) -> Form:
    return Form(grammar=Grammar(kind="regex", text=pattern), param=param)


def _choice(choices: list[str], param: str) -> Form:
    if not choices or "" in choices:
        raise invalid(f"Invalid '{param}': texts to choose from must not be empty.", param, "invalid_value")
    return _pattern("|".join(map(_escaped, choices)), param)


def _escaped(text: str) -> str:
    return "".join(f"\\{one}" if one in _SPECIAL else one for one in text)
