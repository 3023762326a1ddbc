"""/v1/chat/completions: from messages to a prompt, from growing texts to answers."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from cluster.api_answers import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChunkChoice,
    Usage,
)
from cluster.api_errors import invalid
from cluster.api_requests import ChatBody
from cluster.chat_messages import messages_of, tools_of
from cluster.forms import Heading, Prompt
from cluster.growing_text import Growth
from cluster.logprob_forms import chat_logprobs
from cluster.served_model import ServedModel
from cluster.token_texts import TokenTexts


async def chat_prompts(body: ChatBody, model: ServedModel) -> list[Prompt]:
    """One: what the template makes of the messages."""
    if not body.messages:
        raise invalid("Invalid 'messages': empty array.", "messages", "empty_array")
    return [Prompt(tokens=await model.encoder.chat(messages_of(body.messages), tools_of(body)))]


class ChatForm:
    """How one request for a chat is answered."""

    def __init__(self, body: ChatBody, heading: Heading, texts: TokenTexts) -> None:
        self._heading, self._texts = heading, texts
        self._with_logprobs = bool(body.logprobs)
        self._begun: set[int] = set()

    def part(self, index: int, growth: Growth, usage: Usage | UnsetType | None) -> ChatChunk | None:
        if not (growth.text or growth.finish or growth.scored):
            return None
        delta = ChatDelta(UNSET if index in self._begun else "assistant", growth.text)
        self._begun.add(index)
        return self._chunk([ChunkChoice(index, delta, self._logprobs(growth), growth.finish)], usage)

    def usage_part(self, usage: Usage) -> ChatChunk:
        return self._chunk([], usage)

    def whole(self, texts: list[Growth], usage: Usage) -> ChatCompletion:
        choices = [self._choice(index, text) for index, text in enumerate(texts)]
        return ChatCompletion(**self._heading, choices=choices, usage=usage)

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | UnsetType | None) -> ChatChunk:
        return ChatChunk(**self._heading, choices=choices, usage=usage)

    def _choice(self, index: int, text: Growth) -> ChatChoice:
        assert text.finish, "a text that gets no more tokens has ended"
        return ChatChoice(index, ChatMessage(text.text), text.finish, self._logprobs(text))

    def _logprobs(self, growth: Growth) -> ChatLogprobs | None:
        return chat_logprobs(growth.scored, self._texts) if self._with_logprobs else None
