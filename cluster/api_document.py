"""The API's own OpenAPI document, made of the declarations that check requests and write answers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec
from msgspec import Struct

from cluster import api_answers as answers
from cluster import api_requests as requests
from cluster.api_errors import ErrorAnswer
from cluster.api_guard import OPEN

_POSTS: Mapping[str, tuple[type[Struct], type[Struct] | None]] = {
    "/v1/chat/completions": (requests.ChatBody, answers.ChatCompletion),
    "/v1/completions": (requests.CompletionBody, answers.Completion),
    "/tokenize": (requests.TokenizeBody, answers.Tokenized),
    "/detokenize": (requests.DetokenizeBody, answers.Detokenized),
}
_GETS: Mapping[str, type[Struct]] = {
    "/v1/models": answers.Models,
    "/v1/models/{model}": answers.Model,
    "/health": answers.Status,
    "/ready": answers.Status,
}
_STREAMED = {"/v1/chat/completions", "/v1/completions"}
_REFUSED_POSTS = ("400", "404", "408", "413", "415", "429", "503")
_ALWAYS = ("405",)


@cache
def document(*, has_keys: bool = False) -> Mapping[str, Any]:
    """As JSON would have it: of a server with keys, or of one without."""
    kinds = [kind for pair in _POSTS.values() for kind in pair if kind]
    kinds += [*_GETS.values(), answers.Drained, ErrorAnswer]
    _, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {path: {"post": _post(path, *kinds)} for path, kinds in _POSTS.items()}
    paths |= {path: {"get": _get(path, kind)} for path, kind in _GETS.items()}
    paths["/v1/embeddings"] = {"post": {"responses": _errors("400")}}
    paths["/metrics"] = {"get": {"responses": {"200": _content("text/plain", {"type": "string"})}}}
    found = {"openapi": "3.1.0", "info": {"title": "rankforge", "version": "1"}, "paths": paths}
    if not has_keys:
        return {**found, "components": {"schemas": components}}
    drained = {"200": _content("application/json", _named(answers.Drained))}
    paths["/admin/drain"] = {method: {"responses": drained | _errors()} for method in ("post", "delete")}
    _close(paths)
    schemes = {"key": {"type": "http", "scheme": "bearer"}}
    return {**found, "components": {"schemas": components, "securitySchemes": schemes}}


def _close(paths: dict[str, Any]) -> None:
    """All routes take a key, but one."""
    for path, operations in paths.items():
        for operation in operations.values() if path not in OPEN else ():
            operation["security"] = [{"key": []}]
            operation["responses"] |= _errors("401", "403", "429")


def _post(path: str, body: type[Struct], answer: type[Struct] | None) -> Mapping[str, Any]:
    found = {"200": _content("application/json", _named(answer))} if answer else {}
    if path in _STREAMED:
        found["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": _named(body)}}},
        "responses": found | _errors(*_REFUSED_POSTS),
    }


def _get(path: str, answer: type[Struct]) -> Mapping[str, Any]:
    found: dict[str, Any] = {
        "responses": {"200": _content("application/json", _named(answer))} | _errors("404", "503")
    }
    if "{model}" in path:
        found["parameters"] = [
            {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    return found


def _named(kind: type[Struct]) -> Mapping[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _content(media: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": "Done.", "content": {media: {"schema": schema}}}


def _errors(*statuses: str) -> dict[str, Any]:
    body = {"application/json": {"schema": _named(ErrorAnswer)}}
    return {status: {"description": "Refused.", "content": body} for status in (*statuses, *_ALWAYS)}
