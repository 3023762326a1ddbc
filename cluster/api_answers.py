"""The bodies of answers, as OpenAI's clients read them."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

Finish = Literal["stop", "length", "tool_calls"]


class PromptDetails(Struct, frozen=True):
    """Of a prompt's tokens."""

    cached_tokens: int
    """Of those texts that ended by themselves."""


class Usage(Struct, frozen=True):
    """What a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class TopLogprob(Struct, frozen=True):
    """A token that could have been."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Struct, frozen=True):
    """A token that is."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True):
    """Of a message."""

    content: list[TokenLogprob]
    refusal: None = None


class CalledFunction(Struct, frozen=True):
    """And its arguments in JSON, as far as the model wrote them."""

    name: str
    arguments: str


class CalledTool(Struct, frozen=True):
    """What the model asks for."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class ChatMessage(Struct, frozen=True):
    """What the model says."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: list[CalledTool] | UnsetType = UNSET


class ChatChoice(Struct, frozen=True):
    """One of `n`."""

    index: int
    message: ChatMessage
    finish_reason: Finish
    logprobs: ChatLogprobs | None = None


class FunctionDelta(Struct, frozen=True):
    """What is new of a function's call."""

    name: str | UnsetType = UNSET
    """With the first one."""
    arguments: str | UnsetType = UNSET


class ToolDelta(Struct, frozen=True):
    """What is new of one of a message's calls."""

    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    """With the first one."""
    type: Literal["function"] | UnsetType = UNSET


class ChatDelta(Struct, frozen=True):
    """What is new of a message."""

    role: Literal["assistant"] | UnsetType = UNSET
    """With the first one."""
    content: str | UnsetType = UNSET
    tool_calls: list[ToolDelta] | UnsetType = UNSET


class ChunkChoice(Struct, frozen=True):
    """News of one of `n`."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None = None


class CompletionLogprobs(Struct, frozen=True):
    """Of a text, in lists of one length."""

    tokens: list[str]
    token_logprobs: list[float | None]
    """Nothing comes before a prompt's first."""
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]
    """Where they begin in the text."""


class CompletionChoice(Struct, frozen=True):
    """One of `n`, or news of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Finish | None = None


class Answer(Struct, frozen=True, kw_only=True):
    """What all answers begin with."""

    id: str
    created: int
    """Seconds since 1970."""
    model: str
    system_fingerprint: str
    """Equal for engines made of the same parts."""


class ChatCompletion(Answer, frozen=True, kw_only=True):
    """A whole answer of /v1/chat/completions."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage


class ChatChunk(Answer, frozen=True, kw_only=True):
    """A part of one."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET


class Completion(Answer, frozen=True, kw_only=True):
    """An answer of /v1/completions, whole or a part of it."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET


class Model(Struct, frozen=True, kw_only=True):
    """One that is served."""

    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "rankforge"
    max_model_len: int | None
    """Tokens of a prompt and what follows it; null until the model is open, as with its first request."""


class Models(Struct, frozen=True, kw_only=True):
    """/v1/models"""

    object: Literal["list"] = "list"
    data: list[Model]


class Tokenized(Struct, frozen=True, kw_only=True):
    """/tokenize"""

    tokens: list[int]
    count: int
    max_model_len: int


class Detokenized(Struct, frozen=True):
    """/detokenize"""

    prompt: str


class Drained(Struct, frozen=True):
    """/admin/drain"""

    draining: bool
    under_way: int
    """Requests to generate."""


class Status(Struct, frozen=True):
    """/health and /ready"""

    status: str
