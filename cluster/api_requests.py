"""The bodies of requests: OpenAI's fields and types, and those that other servers have added to them.

These declarations check what comes and are what `/openapi.json` shows. What counts, beyond types, is in
`api_choice.py`. Null is as good as nothing everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """What a stream says beside its texts."""

    include_usage: bool | None = None
    """A last part with the numbers of tokens."""
    continuous_usage_stats: bool | None = None
    """Them with every part."""
    include_obfuscation: bool | None = None
    """Accepted, and without effect."""


class JsonSchema(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a text is to be."""

    name: str
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    """Texts are held to the schema either way; one that cannot be kept in all is refused."""


class ResponseFormat(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """OpenAI's: text, json_object or json_schema."""

    type: str
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | None = None
    """Of a json_object, as some servers have it."""


class StructuredOutputs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """vLLM's: one of them."""

    json: str | dict[str, Any] | None = None
    """A schema."""
    regex: str | None = None
    """All of a text."""
    choice: list[str] | None = None
    json_object: bool | None = None


class GenerateBody(Struct, frozen=True, kw_only=True):
    """What chat and completions have in common."""

    model: str
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    """0 and -1 are all."""
    min_p: float | None = None
    n: int | None = None
    best_of: int | None = None
    """Generate so many and give the `n` likeliest; with `use_beam_search`, the number of beams."""
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: bool | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    """By token."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    """These three are older names of what `structured_outputs` has."""
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    user: str | None = None
    """Accepted, and without effect, as are the next ones."""
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class Part(Struct, frozen=True):
    """Of a message's content."""

    type: str
    """Only "text" for now."""
    text: str | None = None


class FunctionCall(Struct, frozen=True):
    """What a model asked for."""

    name: str
    arguments: str


class ToolCall(Struct, frozen=True, kw_only=True):
    """What a model asked for, by name."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Struct, frozen=True, kw_only=True):
    """The chat template sees these fields and no others."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class Function(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a model may ask for."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema. Calls that are forced are held to it."""
    strict: bool | None = None
    """Then a schema that cannot be kept in all is refused; else it is kept as far as it goes."""


class Tool(Struct, frozen=True, kw_only=True):
    """The chat template sees it as it is."""

    type: Literal["function"]
    function: Function


class ChatBody(GenerateBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """/v1/chat/completions"""

    messages: list[Message]
    max_completion_tokens: int | None = None
    """The newer name of `max_tokens`, and counts more."""
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    """"none", "auto", "required", or the function to call."""
    parallel_tool_calls: bool | None = None


class CompletionBody(GenerateBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """/v1/completions"""

    prompt: str | list[str | int | list[int]]
    """A text, tokens, or a list of texts or of lists of tokens."""
    logprobs: int | None = None
    echo: bool | None = None
    """The prompt is a part of the text, with its log-probabilities if they are asked for."""


class TokenizeBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """/tokenize"""

    model: str | None = None
    """None is the only one there is."""
    prompt: str | None = None
    messages: list[Message] | None = None
    """In place of a prompt: what the chat template makes of them."""
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = None
    """To a prompt; None does."""


class DetokenizeBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """/detokenize"""

    model: str | None = None
    tokens: list[int]


REFUSED = {
    "audio": "texts only",
    "modalities": "texts only",
    "prediction": "not known here",
    "web_search_options": "nothing is searched here",
    "suffix": "texts are continued at their end",
    "functions": "use tools",
    "function_call": "use tool_choice",
    "reasoning_effort": "the model has no such setting",
    "verbosity": "the model has no such setting",
    "chat_template": "the server's counts",
    "guided_grammar": "use a JSON schema or a regular expression",
    "guided_whitespace_pattern": "the server's counts",
    "guided_decoding_backend": "there is one",
}
"""Fields that clients may know from elsewhere, and why not."""

SETTLED: Mapping[str, object] = {
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False,
    "add_generation_prompt": True,
    "continue_final_message": False,
    "chat_template_kwargs": {},
}
"""Fields of other servers, and the one value that they may have: what is done anyway."""
