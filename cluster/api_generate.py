"""/v1/chat/completions and /v1/completions: one way for both, from a body to an answer or a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from builders.errors import RankforgeError, WordsError
from cluster.answering import Answering, Wish
from cluster.api_answers import Usage
from cluster.api_body import read_body
from cluster.api_choice import Choice, choice_of, fitted
from cluster.api_config import ApiConfig
from cluster.api_errors import ApiError, api_error
from cluster.api_requests import ChatBody, CompletionBody, StreamOptions
from cluster.api_service import Service
from cluster.chat_form import ChatForm, chat_prompts
from cluster.completion_form import CompletionForm, completion_prompts, given_prompts
from cluster.connection import Reader, send_events, send_json, while_connected
from cluster.forms import Form, Heading, Prompt
from cluster.growing_text import Growth, joined
from cluster.request_record import RequestRecord, record_of, tokens_of
from cluster.served_model import ServedModel
from cluster.structured import Form as Held
from cluster.structured import form_of
from cluster.tools import held_chat

BodyT = TypeVar("BodyT", ChatBody, CompletionBody)

_RENEWAL_S = 60.0
"""So long replicas may differ in their tokenizers."""
_DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, kw_only=True)
class Kind(Generic[BodyT]):
    """What differs between the two."""

    body: type[BodyT]
    prefix: str
    """Of the answers' ids."""
    field: str
    """Where the prompt is."""
    count: Callable[[BodyT], int]
    """Prompts, before they are looked at."""
    prompts: Callable[[BodyT, ServedModel], Awaitable[list[Prompt]]]
    held_to: Callable[[BodyT, ServedModel, ApiConfig], Held | None]
    """What its texts must be."""
    form: Callable[[BodyT, Heading, ServedModel, Sequence[Prompt]], Form]
    """There is a prompt for every text."""


CHAT = Kind(
    body=ChatBody,
    prefix="chatcmpl",
    field="messages",
    count=lambda body: 1,
    prompts=chat_prompts,
    held_to=lambda body, model, config: held_chat(body, model.tools, config.max_tools),
    form=lambda body, heading, model, prompts: ChatForm(body, heading, model),
)
COMPLETION = Kind(
    body=CompletionBody,
    prefix="cmpl",
    field="prompt",
    count=lambda body: len(given_prompts(body)),
    prompts=completion_prompts,
    held_to=lambda body, model, config: form_of(body),
    form=lambda body, heading, model, prompts: CompletionForm(body, heading, model, prompts),
)


class Generate(Generic[BodyT]):
    """An ASGI endpoint: it hears when its caller leaves, and ends what it has begun."""

    def __init__(self, service: Service, kind: Kind[BodyT]) -> None:
        self._service = service
        self._kind: Kind[BodyT] = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._service.stream():
                body = await read_body(Request(scope, receive), self._kind.body, self._service.config)
                record = record_of(scope)
                reader = Reader(send, self._service.config.read_timeout_s)
                work = self._answer(body, reader, record)
                record.has_left = not await while_connected(receive, reader, work)
        except RankforgeError as error:
            raise api_error(error, self._service.config.retry_after_s) from error

    async def _answer(self, body: BodyT, send: Send, record: RequestRecord) -> None:
        """From the start again, where the model got another tokenizer meanwhile: nothing is sent then."""
        deadline = time.monotonic() + _RENEWAL_S
        while True:
            model = await self._service.found(body.model)
            try:
                return await self._answer_by(model, body, send, record)
            except WordsError:
                if time.monotonic() > deadline:
                    raise
                await self._service.renew(model)

    async def _answer_by(self, model: ServedModel, body: BodyT, send: Send, record: RequestRecord) -> None:
        """Limits first, then the prompts, then the engine."""
        service, kind = self._service, self._kind
        record.model, record.prompt = model.facts.name, service.logged(getattr(body, kind.field))
        choice = choice_of(body, service.config, model.facts)
        if held := kind.held_to(body, model, service.config):
            await service.check_form(held, model)
            choice = choice.held_to(held.grammar)
        service.check_prompts(kind.count(body))
        service.check_room(model, kind.count(body))
        prompts = await self._prompts(body, model)
        namespace = service.namespace(record)
        wishes = [self._wish(choice, prompt, model, namespace) for prompt in prompts]
        heading = _heading(kind.prefix, model)
        record.answer = heading["id"]
        form = kind.form(body, heading, model, [one for one in prompts for _ in range(choice.returned)])
        counts = service.counts.models[model.facts.name]
        most = sum(len(wish.prompt) + (choice.asked_tokens or 0) * wish.params.n for wish in wishes)
        with tokens_of(record, most), Answering(model, heading["id"], wishes, counts, record) as answering:
            if body.stream:
                async with aclosing(_events(answering, form, body.stream_options)) as events:
                    await send_events(send, events)
            else:
                await send_json(send, await _whole(answering, form, choice))

    async def _prompts(self, body: BodyT, model: ServedModel) -> list[Prompt]:
        try:
            return await self._kind.prompts(body, model)
        except ApiError as error:
            error.param = error.param or self._kind.field
            raise

    def _wish(self, choice: Choice, prompt: Prompt, model: ServedModel, namespace: str) -> Wish:
        try:
            params = fitted(choice, prompt.tokens, self._service.config, model.facts)
        except ApiError as error:
            error.param = self._kind.field
            raise
        is_scored_only = choice.asked_tokens == 0
        return Wish(prompt=prompt.tokens, params=params, namespace=namespace, is_scored_only=is_scored_only)


def _heading(prefix: str, model: ServedModel) -> Heading:
    facts = model.facts
    return Heading(
        id=f"{prefix}-{secrets.token_hex(16)}",
        created=int(time.time()),
        model=facts.name,
        system_fingerprint=f"fp_{facts.key[:12]}",
    )


async def _whole(answering: Answering, form: Form, choice: Choice) -> bytes:
    parts: list[list[Growth]] = [[] for _ in answering.texts]
    async with aclosing(answering.growths()) as batches:
        async for grown in batches:
            for index, growth in grown:
                parts[index].append(growth)
    given = [joined(parts[index]) for index in _returned(answering, choice)]
    return msgspec.json.encode(form.whole(given, answering.usage))


def _returned(answering: Answering, choice: Choice) -> list[int]:
    """Which texts are given, prompt by prompt: all, or the likeliest by token."""
    texts, made = answering.texts, choice.params.n
    numbers = range(len(texts))
    if not choice.is_ranked:
        return [*numbers]
    found: list[int] = []
    for first in range(0, len(texts), made):
        best = sorted(numbers[first : first + made], key=lambda index: -texts[index].mean_likelihood)
        found += best[: choice.returned]
    return found


async def _events(
    answering: Answering, form: Form, options: StreamOptions | None
) -> AsyncGenerator[bytes, None]:
    """What fails after the first event is one too: OpenAI's clients raise it."""
    wanted = options or StreamOptions()
    try:
        async with aclosing(answering.growths()) as batches:
            async for grown in batches:
                if events := _joined_events(form, grown, _usage_beside(answering, wanted)):
                    yield events
    except RankforgeError as error:
        if not answering.has_begun:
            raise
        yield b"data: " + api_error(error, 0).body + b"\n\n"
        return
    if wanted.include_usage:
        yield _event(form.usage_part(answering.usage)) + _DONE
    else:
        yield _DONE


def _usage_beside(answering: Answering, options: StreamOptions) -> Usage | UnsetType | None:
    """With a part that has text: nothing, unless the last one has it, or all are to."""
    if options.continuous_usage_stats:
        return answering.usage
    return None if options.include_usage else UNSET


def _joined_events(form: Form, grown: list[tuple[int, Growth]], usage: Usage | UnsetType | None) -> bytes:
    parts = (form.part(index, growth, usage) for index, growth in grown)
    return b"".join([_event(part) for part in parts if part is not None])


def _event(part: Struct) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(part)
