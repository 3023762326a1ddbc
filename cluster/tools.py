"""What a body says of tools: which of them templates see, which calls are read, which are forced."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec
from transformers import PreTrainedTokenizerBase

from actors.matchers import check_multiples
from cluster.api_errors import ApiError, invalid
from cluster.api_requests import ChatBody, Tool
from cluster.structured import Form, form_of
from cluster.tool_formats import (
    Callable,
    ToolFormat,
    ToolFormatName,
    calls_grammar,
    takes_tools,
    tool_format,
)

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class ToolNotation:
    """How a model is told of tools, and calls them."""

    takes_tools: bool
    """Its chat template has a place for them."""
    form: ToolFormat | None
    """None where texts are not looked into."""
    special: frozenset[str] = frozenset()
    """Marks of the format that are tokens of their own: grammars do not take these for text."""


NO_TOOLS = ToolNotation(takes_tools=False, form=None)


def choice_of_tools(body: ChatBody) -> str:
    """ "none", "auto", "required", or the name of the only one that may be called, after a colon."""
    choice: Any = "auto" if body.tool_choice is None else body.tool_choice
    if isinstance(choice, dict):
        choice = f":{_named(choice)}"
    elif choice not in ("none", "auto", "required"):
        raise _wrong_choice(choice)
    if choice not in ("none", "auto") and not body.tools:
        raise invalid("'tool_choice' is only allowed when 'tools' are specified.", "tool_choice")
    names = [tool.function.name for tool in body.tools or ()]
    if choice.startswith(":") and choice[1:] not in names:
        raise invalid(f"Tool choice '{choice[1:65]}' not found in 'tools' parameter.", "tool_choice")
    return choice if body.tools else "none"


def check_tools(body: ChatBody, notation: ToolNotation, most: int) -> None:
    """Refuse what cannot be."""
    choice, tools = choice_of_tools(body), body.tools or []
    if len(tools) > most:
        raise invalid(
            f"Invalid 'tools': {len(tools)} of them, at most {most}.", "tools", "array_above_max_length"
        )
    for number, tool in enumerate(tools):
        if not _NAME.fullmatch(tool.function.name):
            raise invalid(
                f"Invalid 'tools[{number}].function.name': expected 1 to 64 letters, digits, '_', '-'.",
                f"tools[{number}].function.name",
                "invalid_value",
            )
    if choice == "none":
        return
    if not notation.takes_tools:
        raise invalid(
            "'tools': the model's chat template has no place for them.", "tools", "unsupported_value"
        )
    if choice != "auto" and notation.form is None:
        raise invalid(
            f"Invalid value for 'tool_choice': {body.tool_choice!r} takes a format of calls, and the model's "
            "is not known; use 'auto' or 'none', or configure tool_format",
            "tool_choice",
            "unsupported_value",
        )


def reads_calls(body: ChatBody, notation: ToolNotation) -> ToolFormat | None:
    return None if choice_of_tools(body) == "none" else notation.form


def held_chat(body: ChatBody, notation: ToolNotation, most: int) -> Form | None:
    """What texts are held to; what is wrong with tools is refused."""
    check_tools(body, notation, most)
    try:
        return _form(body, notation)
    except RecursionError:
        raise invalid("Invalid 'tools': too deep", "tools", "invalid_value") from None


def _form(body: ChatBody, notation: ToolNotation) -> Form | None:
    """Calls may come in place of an answer that has a form."""
    form, choice, calls = form_of(body), choice_of_tools(body), notation.form
    if choice == "none" or calls is None or (choice == "auto" and form is None):
        return form
    if choice == "auto" and form and form.grammar.kind != "json_schema":
        raise invalid(f"'{form.param}' is not possible with 'tools'; use tool_choice='none'", form.param)
    if choice != "auto" and body.use_beam_search:
        raise invalid("'tool_choice' is not possible with 'use_beam_search'.", "tool_choice")
    answer = msgspec.json.decode(form.grammar.text) if choice == "auto" and form else None
    tools = [
        _callable(tool)
        for tool in body.tools or ()
        if choice in ("auto", "required", f":{tool.function.name}")
    ]
    several = body.parallel_tool_calls is not False and not choice.startswith(":")
    grammar = calls_grammar(calls, tools, several=several, special=notation.special, answer=answer)
    return Form(grammar=grammar, param="tools" if choice != "auto" or form is None else form.param)


def _callable(tool: Tool) -> Callable:
    parameters = tool.function.parameters or {"type": "object"}
    try:
        check_multiples(parameters)
    except (ValueError, RecursionError) as error:
        raise invalid(f"Invalid 'tools': {error}", "tools", "invalid_value") from None
    return Callable(name=tool.function.name, parameters=parameters, is_strict=bool(tool.function.strict))


def _named(choice: dict[str, Any]) -> str:
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if choice.get("type") != "function" or not isinstance(name, str):
        raise _wrong_choice(choice)
    return name


def _wrong_choice(choice: Any) -> ApiError:
    return invalid(
        f"Invalid value for 'tool_choice': {str(choice)[:64]!r}. Supported values are: 'none', 'auto', "
        """'required' and {"type": "function", "function": {"name": ...}}.""",
        "tool_choice",
        "unsupported_value",
    )


def notation_of(
    tokenizer: PreTrainedTokenizerBase, template: Any, name: ToolFormatName | None
) -> ToolNotation:
    """Of a model with this chat template, which may be several by name."""
    text = template if isinstance(template, str) else str(template) if template else None
    form = tool_format(text, name)
    added = {one.content for one in tokenizer.added_tokens_decoder.values()}
    marks = added & set(form.marks) if form else set()
    return ToolNotation(takes_tools=takes_tools(text), form=form, special=frozenset(marks))
