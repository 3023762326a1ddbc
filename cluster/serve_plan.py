"""From the options of `rankforge serve`, or a file, to what Ray Serve is to run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

from builders.errors import LayoutError, UserError
from cluster.access import Access, bound
from cluster.api_keys import read_keys
from cluster.build_options import BuildOptions
from cluster.engine_maker import needs
from cluster.foresight import foresee
from cluster.options import declared
from cluster.placement import CPU, Needs, Node, Plan, bundles_of, plan, without
from cluster.serve_config import (
    ModelConfig,
    ServiceConfig,
    application_name,
    model_config,
    service_config,
)
from cluster.serve_file import API_PATH, MODEL_PATH, check_file
from cluster.serve_options import ServeOptions

Found = TypeVar("Found")

API, HOST, PORT = "api", "127.0.0.1", 8000
"""The application of the HTTP service, and where it is unasked."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """Everything that is to run."""

    schema: dict[str, Any]
    """A Serve configuration."""
    models: Mapping[str, ModelConfig]
    """By application."""
    is_file: bool
    """It is the whole configuration of the cluster's Serve, and not one model more."""
    api: str | None = field(default=API)
    """The application of the HTTP service; None where a file has none."""

    @property
    def url(self) -> str:
        """As a caller on this machine writes it."""
        http = self.schema["http_options"]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(http["host"], http["host"])
        return f"http://{f'[{host}]' if ':' in host else host}:{http['port']}"

    @cached_property
    def wanted(self) -> list[tuple[str, Needs, int]]:
        """What every model takes, and how many times at most."""
        return [
            (name, _of_model(name, needs, config), config.replicas.most)
            for name, config in self.models.items()
        ]

    @property
    def cpus(self) -> float:
        """Of the service and of all replicas, as Ray counts them."""
        own = sum(config.cpus * config.replicas for config in self._apis)
        return own + sum(most * bundles_of(wanted).total(CPU) for _, wanted, most in self.wanted)

    @property
    def keys_files(self) -> list[Path]:
        """Where callers need a key."""
        return [config.access.keys_file for config in self._apis if config.access.keys_file]

    @property
    def _apis(self) -> list[ServiceConfig]:
        found = [app for app in self.schema["applications"] if app["import_path"] == API_PATH]
        return [service_config(app.get("args", {})) for app in found]

    def foresee(self) -> None:
        """Refuse what cannot be made or served, before anything is started."""
        for file in self.keys_files:
            read_keys(file)
        for name, config in self.models.items():
            _of_model(name, foresee, config)

    def check(self, nodes: Sequence[Node]) -> None:
        """Refuse what these nodes could never hold: a model alone, or all replicas that are to start."""
        wanted = self.wanted
        for name, needed, _ in wanted:
            _fitted(name, needed, nodes)
        left = nodes
        for name, needed, _ in wanted:
            count = self.models[name].replicas.first
            for number in range(1, count + 1):
                what = f"{name}: replica {number} of {count}, after what comes before it"
                left = without(left, _fitted(what, needed, left))


def _fitted(what: str, needed: Needs, nodes: Sequence[Node]) -> Plan:
    try:
        return plan(needed, nodes)
    except LayoutError as error:
        raise LayoutError(f"{what}: {error}") from error


def _of_model(name: str, look: Callable[[ModelConfig], Found], config: ModelConfig) -> Found:
    try:
        return look(config)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def planned(options: ServeOptions) -> Service:
    """Checked as far as it can be without a cluster."""
    if Path(options.model).suffix in (".yaml", ".yml"):
        return _of_file(options)
    args = _args(options)
    name = application_name(options.name or _name(options.model))
    if name == API:
        raise UserError(f"--name={name}: is the service's own; choose another")
    access = bound(Access(keys_file=options.keys_file), options.host or HOST, insecure=options.insecure)
    keys = str(options.keys_file.absolute()) if options.keys_file else None
    api = {"drain_s": options.drain_s, "access": {"keys_file": keys, "insecure": access.insecure}}
    applications = [
        {"name": API, "route_prefix": "/", "import_path": API_PATH, "args": api},
        {"name": name, "route_prefix": None, "import_path": MODEL_PATH, "args": args},
    ]
    http = {"host": options.host or HOST, "port": options.port or PORT}
    schema = {"http_options": http, "applications": applications}
    return Service(schema=schema, models={name: model_config(args)}, is_file=False)


def _args(options: ServeOptions) -> dict[str, Any]:
    build = {one.name for one in declared(BuildOptions)} & options.given
    build -= {"model", "tokenizer_dir", "address"}  # which are of serving, by the same names
    template = options.chat_template
    local = Path(options.model).expanduser()
    return {
        "model": str(local.absolute()) if local.exists() or local.is_absolute() else options.model,
        "build": {name: getattr(options, name) for name in sorted(build)},
        "engines_dir": str(options.engines_dir.expanduser().absolute()),
        "tokenizer_dir": str(options.tokenizer_dir.absolute()) if options.tokenizer_dir else None,
        "chat_template": _text("--chat_template", template) if template else None,
        "replicas": {"least": options.replicas, "most": options.replicas},
        "kv_cache_free_gpu_memory_fraction": options.kv_cache_free_gpu_memory_fraction,
        "prompt_lookup_num_tokens": options.prompt_lookup_num_tokens,
        "drain_s": options.drain_s,
    }


def _name(model: str) -> str:
    local = Path(model).expanduser()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", (local.absolute() if local.exists() else Path(model)).name)


def _of_file(options: ServeOptions) -> Service:
    file = Path(options.model)
    foreign = options.given - {"model", "host", "port", "address", "drain_s", "insecure"}
    if foreign:
        raise UserError(f"--{min(foreign)}: {file} says what is served; write it there, or leave it out")
    try:
        schema = _mapping(file, yaml.safe_load(_text("", file)))
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{file}: is no YAML: {' '.join(str(error).split())}") from error
    http = {"host": HOST, "port": PORT, **_mapping(file, schema.get("http_options", {}))}
    http |= {name: given for name in ("host", "port") if (given := getattr(options, name)) is not None}
    applications = schema.get("applications")
    if not isinstance(applications, list) or not applications:
        raise UserError(f"{file}: has no applications; see docs/serving.md")
    check_file(file, {**schema, "http_options": http})
    models, api = {}, None
    for app in applications:
        name, path = app["name"], app["import_path"]
        try:
            if path == MODEL_PATH:
                models[name] = model_config(app.get("args", {}))
            elif path == API_PATH:
                config = service_config(app.get("args", {}))
                access = bound(config.access, str(http["host"]), insecure=options.insecure)
                given = {**app.get("args", {}).get("access", {}), "insecure": access.insecure}
                app["args"] = {**app.get("args", {}), "access": given}
                api = name
        except UserError as error:
            raise UserError(f"{file}: {name}: {error}") from error
    if not models:
        raise UserError(f"{file}: has no application of {MODEL_PATH}; there is no model to serve")
    return Service(schema={**schema, "http_options": http}, models=models, is_file=True, api=api)


def _mapping(file: Path, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{file}: not a Serve configuration; see docs/serving.md")
    return value


def _text(option: str, file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{option}{'=' if option else ''}{file}: cannot be read ({why})") from error
