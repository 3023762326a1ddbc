"""The endpoints that generate nothing: models, words and tokens, health, metrics, draining."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from cluster.api_answers import Detokenized, Drained, Model, Models, Status, Tokenized
from cluster.api_body import read_body
from cluster.api_choice import check_tokens
from cluster.api_errors import failed, invalid
from cluster.api_metrics import CONTENT_TYPE, ApiMetrics
from cluster.api_requests import DetokenizeBody, TokenizeBody
from cluster.api_service import Service
from cluster.chat_messages import messages_of, plain_tools
from cluster.served_model import ServedModel


class Plain:
    """Endpoints with small answers."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._metrics = ApiMetrics(service.counts, service.engines)

    async def models(self, _request: Request) -> Response:
        found = [_described(model) for model in self._service.models.values()]
        return _json(
            Models(data=found + [_closed(name, came) for name, came in self._service.closed.items()])
        )

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if (came := self._service.closed.get(name)) is not None:
            return _json(_closed(name, came))
        return _json(_described(self._service.model(name)))

    async def embeddings(self, _request: Request) -> Response:
        raise invalid(
            "You are not allowed to generate embeddings from these models: they generate texts; "
            "use /v1/chat/completions or /v1/completions",
            "model",
            "unsupported_model",
        )

    async def tokenize(self, request: Request) -> Response:
        body = await read_body(request, TokenizeBody, self._service.config)
        model = await self._service.found(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise invalid("One of 'prompt' and 'messages' must be given.", "prompt")
        if body.prompt is not None:
            tokens = await model.encoder.text(body.prompt, special=body.add_special_tokens is not False)
        else:
            tokens = await model.encoder.chat(messages_of(body.messages or []), plain_tools(body.tools))
        length = model.facts.limits.max_seq_len
        return _json(Tokenized(tokens=[*tokens], count=len(tokens), max_model_len=length))

    async def detokenize(self, request: Request) -> Response:
        body = await read_body(request, DetokenizeBody, self._service.config)
        model = await self._service.found(body.model)
        check_tokens("tokens", body.tokens, model.facts.vocab_size)
        return _json(Detokenized(model.encoder.decoded(body.tokens)))

    async def health(self, _request: Request) -> Response:
        """The process answers."""
        return _json(Status("ok"))

    async def ready(self, _request: Request) -> Response:
        """Every model takes requests."""
        self._service.check_draining()
        if problems := self._service.problems():
            raise failed("; ".join(problems))
        return _json(Status("ready"))

    async def metrics(self, _request: Request) -> Response:
        return Response(self._metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def drain(self, request: Request) -> Response:
        """What is under way ends, nothing begins; DELETE takes it back."""
        self._service.is_draining = request.method == "POST"
        return _json(Drained(draining=self._service.is_draining, under_way=self._service.under_way))


def _described(model: ServedModel) -> Model:
    facts = model.facts
    return Model(id=facts.name, created=model.created, max_model_len=facts.limits.max_seq_len)


def _closed(name: str, came: int) -> Model:
    return Model(id=name, created=came, max_model_len=None)


def _json(body: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
