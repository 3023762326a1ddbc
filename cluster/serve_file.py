"""What a file that Ray Serve is to run may say, looked at before anything is started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from builders.errors import UserError

MODEL_PATH, API_PATH = "cluster.serving:model", "cluster.serving:api"
"""The `import_path` of a model, and of the API over all of them."""


def check_file(file: Path, schema: Mapping[str, Any]) -> None:
    """Serve itself ignores fields that it does not know, and explains others on many lines."""
    _check_known(f"{file}", schema, ServeDeploySchema)
    _check_known(f"{file}: http_options", schema.get("http_options") or {}, HTTPOptionsSchema)
    for number, app in enumerate(schema["applications"]):
        _check_application(f"{file}: applications[{number}]", app)
    try:
        ServeDeploySchema.model_validate(schema)
    except ValidationError as error:
        raise UserError(f"{file}: {_first(error)}") from None
    port = schema["http_options"].get("port", 1)
    if not (isinstance(port, int) and 0 < port < 2**16):
        raise UserError(f"{file}: http_options.port={port!r}: must be a number from 1 to 65535")


def _check_application(where: str, app: object) -> None:
    if not isinstance(app, Mapping):
        raise UserError(f"{where}: is no object; see docs/serving.md")
    name, route = app.get("name"), app.get("route_prefix", "/")
    if not isinstance(name, str) or not name or "/" in name:
        raise UserError(f"{where}: name={name!r}: must be a text without /, for which -- stands")
    _check_known(f"{where}: {name}", app, ServeApplicationSchema)
    if app.get("import_path") == MODEL_PATH and route is not None:
        raise UserError(f"{where}: {name}: route_prefix={route!r}: models have none; write null")


def _check_known(where: str, given: object, kind: type[BaseModel]) -> None:
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: not a Serve configuration; see docs/serving.md")
    if unknown := sorted(map(str, given.keys() - kind.model_fields.keys())):
        raise UserError(f"{where}: unknown fields {unknown}; there are {_listed(kind.model_fields)}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _first(error: ValidationError) -> str:
    found = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in found["loc"])
    value = found["input"]
    shown = f"={value!r}" if isinstance(value, str | int | float | None) else ""
    return " ".join(f"{place}{shown}: {found['msg']}".split())
