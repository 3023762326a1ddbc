"""What one model and the API of a service are told: the `args` of an application in a Serve configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from builders.errors import UserError
from builders.keys import content_key
from builders.plain import from_json
from cluster.access import Access
from cluster.api_config import ApiConfig
from cluster.build_options import BuildOptions
from cluster.options import declared
from cluster.tool_formats import ToolFormatName


def model_name(application: str) -> str:
    """What callers call a model. Serve takes no / in the name of an application."""
    return application.replace("--", "/")


def application_name(model: str) -> str:
    """The inverse, of names that have one."""
    if "--" in model:
        raise UserError(f"{model}: -- stands for / in the names of models; give it another with --name")
    return model.replace("/", "--")


ENGINES_DIR = "~/.cache/rankforge/engines"

_NOT_FOR_SERVING = frozenset(
    "checkpoint_dir model_dir model_config no_weights ranks output_dir overwrite store_limit json".split()
)
"""Options of a build that serving decides itself, or that make no whole engine."""


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """How many groups of ranks a model has."""

    least: int = 1
    """When nobody asks for anything; 0 gives all back, and the next request waits for a cold start."""
    most: int = 1
    """Under the largest load; as many as `least` for a fixed number."""
    at_start: int | None = None
    """Before any request; None is one, or `least` where that is more: so that a mistake shows at once."""
    target_ongoing: float = 32.0
    """Requests under way that one replica is to have on average; more of them start another one."""
    upscale_delay_s: float = 5.0
    """How long there must be more, before another one starts; from none to one takes no delay."""
    downscale_delay_s: float = 300.0
    """How long there must be fewer, before one ends."""

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most or self.most < 1:
            raise UserError(
                f"replicas: least={self.least} most={self.most}: 0 <= least <= most, and most >= 1"
            )
        if self.at_start is not None and not self.least <= self.at_start <= self.most:
            raise UserError(
                f"replicas: at_start={self.at_start}: must be between least={self.least} and most={self.most}"
            )
        for name in ("target_ongoing", "upscale_delay_s", "downscale_delay_s"):
            _check_least(f"replicas: {name}", getattr(self, name), 0, above=name == "target_ongoing")

    @property
    def first(self) -> int:
        """Before any request."""
        return max(1, self.least) if self.at_start is None else self.at_start


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The `args` of `cluster.serving:model`; callers know it by the application's name, with / for --."""

    model: str
    """An engine's folder; or a checkpoint's, a model's, or a Hugging Face id, of which an engine is made."""
    build: Mapping[str, Any] = field(default_factory=dict)
    """Options of `rankforge build` by name, such as tp_size, dtype, target or max_batch_size."""
    engines_dir: str = ENGINES_DIR
    """Folder for engines that are made; on several machines it has to be one that all of them share."""
    tokenizer_dir: Path | None = None
    """A folder with the tokenizer; None is the engine's own."""
    chat_template: str | None = None
    """Jinja, for a model that has none; None is the tokenizer's own."""
    tool_format: ToolFormatName | None = None
    """How the model writes calls of tools; None is as its template shows, and none that texts are texts."""
    replicas: Replicas = field(default_factory=Replicas)
    max_ongoing: int = 512
    """Requests that one replica has under way, those that wait for its engine too; more wait outside."""
    cpus_per_rank: float = 1.0
    """What a rank takes of its node, as Ray counts it."""
    num_blocks: int | None = None
    """Of every rank's cache; None takes what the device has."""
    kv_cache_free_gpu_memory_fraction: float = 0.9
    """Of what the device has left after weights and the largest step."""
    prompt_lookup_num_tokens: int = 0
    """Tokens to guess from the text itself in every step of a greedy text."""
    drain_s: float = 60.0
    """How long requests under way may take when a replica is to end."""
    health_check_s: float = 2.0
    """How often a replica is asked whether its engine works."""

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise UserError("model='': is empty; name an engine, a checkpoint, a model or a Hugging Face id")
        _check_least("max_ongoing", self.max_ongoing, 1)
        _check_least("cpus_per_rank", self.cpus_per_rank, 0, above=True)
        _check_least("prompt_lookup_num_tokens", self.prompt_lookup_num_tokens, 0)
        _check_least("drain_s", self.drain_s, 0)
        _check_least("health_check_s", self.health_check_s, 0, above=True)
        if not 0 < self.kv_cache_free_gpu_memory_fraction <= 1:
            fraction = self.kv_cache_free_gpu_memory_fraction
            raise UserError(f"kv_cache_free_gpu_memory_fraction={fraction:g}: must be more than 0, at most 1")
        if self.num_blocks is not None:
            _check_least("num_blocks", self.num_blocks, 1)
        self.options()  # says what is wrong with `build`

    def options(self, **source: Any) -> BuildOptions:
        """The build of the engine, where it has to be made."""
        names = {one.name for one in declared(BuildOptions)} - _NOT_FOR_SERVING
        if unknown := sorted(self.build.keys() - names):
            raise UserError(f"build: unknown options {unknown}; there are {', '.join(sorted(names))}")
        chosen = from_json(BuildOptions, {"output_dir": str(self.made_dir), **self.build})
        return BuildOptions(**{**vars(chosen), **source, "overwrite": True, "given": frozenset(self.build)})

    @property
    def made_dir(self) -> Path:
        """Where the engine is kept that is made; another one for every other wish."""
        folder = Path(self.engines_dir).expanduser().absolute()
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.model).strip("-.")[-40:]
        return folder / f"{name}-{content_key(model=self.model, build=dict(self.build))[:12]}"


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """The `args` of `cluster.serving:api`: the one HTTP service over all models of the cluster."""

    replicas: int = 1
    """Processes that take HTTP requests, encode and decode; each is good for thousands of tokens a second.
    They share what `limits` and keys allow in all."""
    cpus: float = 1.0
    """What each takes of its node, as Ray counts it."""
    drain_s: float = 60.0
    """How long requests under way may take when one is to end."""
    limits: ApiConfig = field(default_factory=ApiConfig)
    """What a caller may ask for."""
    access: Access = field(default_factory=Access)
    """Who may ask, and what is written down."""

    def __post_init__(self) -> None:
        _check_least("replicas", self.replicas, 1)
        _check_least("cpus", self.cpus, 0)
        _check_least("drain_s", self.drain_s, 0)


def model_config(args: Mapping[str, Any]) -> ModelConfig:
    """Checked; errors are one line."""
    return from_json(ModelConfig, args)


def service_config(args: Mapping[str, Any]) -> ServiceConfig:
    """Checked; errors are one line."""
    config = from_json(ServiceConfig, args)
    if (file := config.access.keys_file) is None:
        return config
    if not (found := file.expanduser()).is_absolute():
        raise UserError(
            f"access: keys_file={file}: must be an absolute path, or begin with ~/: processes of the API "
            "work in folders of their own"
        )
    return replace(config, access=replace(config.access, keys_file=found))


def _check_least(name: str, value: float, least: float, *, above: bool = False) -> None:
    if value < least or (above and value == least):
        raise UserError(f"{name}={value:g}: must be {'more than' if above else 'at least'} {least:g}")
