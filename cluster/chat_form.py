"""/v1/chat/completions: from messages to a prompt, from growing texts to answers."""

from __future__ import annotations

from typing import Literal, cast

from msgspec import UNSET, UnsetType

from cluster.api_answers import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChunkChoice,
    Finish,
    Usage,
)
from cluster.api_errors import invalid
from cluster.api_requests import ChatBody
from cluster.call_forms import Calls
from cluster.chat_messages import messages_of, tools_of
from cluster.forms import Heading, Prompt
from cluster.growing_text import Growth
from cluster.logprob_forms import chat_logprobs
from cluster.served_model import ServedModel
from cluster.tools import reads_calls


async def chat_prompts(body: ChatBody, model: ServedModel) -> list[Prompt]:
    """One: what the template makes of the messages."""
    if not body.messages:
        raise invalid("Invalid 'messages': empty array.", "messages", "empty_array")
    return [Prompt(tokens=await model.encoder.chat(messages_of(body.messages), tools_of(body)))]


class ChatForm:
    """How one request for a chat is answered."""

    def __init__(self, body: ChatBody, heading: Heading, model: ServedModel) -> None:
        self._heading, self._texts = heading, model.texts
        self._with_logprobs = bool(body.logprobs)
        self._begun: set[int] = set()
        self._calls = Calls(form) if (form := reads_calls(body, model.tools)) else None
        if self._calls and body.parallel_tool_calls is False:
            self._calls.most = 1

    def part(self, index: int, growth: Growth, usage: Usage | UnsetType | None) -> ChatChunk | None:
        if not (growth.text or growth.finish or growth.scored):
            return None
        text, calls, finish = growth.text, None, cast("Finish | None", growth.finish)
        if self._calls:
            text, calls, finish = self._calls.part(index, growth)
            if not (text or calls or finish or growth.scored):
                return None
        role: Literal["assistant"] | UnsetType = UNSET if index in self._begun else "assistant"
        self._begun.add(index)
        delta = ChatDelta(role, UNSET if calls and not text else text, calls or UNSET)
        return self._chunk([ChunkChoice(index, delta, self._logprobs(growth), finish)], usage)

    def usage_part(self, usage: Usage) -> ChatChunk:
        return self._chunk([], usage)

    def whole(self, texts: list[Growth], usage: Usage) -> ChatCompletion:
        choices = [self._choice(index, text) for index, text in enumerate(texts)]
        return ChatCompletion(**self._heading, choices=choices, usage=usage)

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | UnsetType | None) -> ChatChunk:
        return ChatChunk(**self._heading, choices=choices, usage=usage)

    def _choice(self, index: int, text: Growth) -> ChatChoice:
        assert text.finish, "a text that gets no more tokens has ended"
        if self._calls:
            message, finish = self._calls.message(text)
            return ChatChoice(index, message, finish, self._logprobs(text))
        return ChatChoice(index, ChatMessage(text.text), text.finish, self._logprobs(text))

    def _logprobs(self, growth: Growth) -> ChatLogprobs | None:
        return chat_logprobs(growth.scored, self._texts) if self._with_logprobs else None
