"""What all endpoints share: the models, the limits, and how many requests are under way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cluster.api_config import ApiConfig
from cluster.api_errors import ApiError, failed, full, invalid
from cluster.engine_client import EngineLoad
from cluster.grammar_checks import GrammarChecks
from cluster.served_model import ServedModel
from cluster.structured import Form


class Service:
    """For one event loop."""

    def __init__(self, config: ApiConfig) -> None:
        self.config = config
        self.models: dict[str, ServedModel] = {}
        """By the names that callers use; those that are ready."""
        self.grammars = GrammarChecks(config)
        self._streams = 0

    def serve(self, models: Sequence[ServedModel]) -> None:
        """From now on."""
        self.models = {model.facts.name: model for model in models}

    def model(self, name: str | None) -> ServedModel:
        """The one of this name, or the only one where none is named."""
        if name is None and len(self.models) == 1:
            return next(iter(self.models.values()))
        if name is None or name not in self.models:
            raise ApiError(
                status=404,
                message=f"The model {(name or '')[:200]!r} does not exist; use {' or '.join(self.models)}",
                param="model",
                code="model_not_found",
            )
        return self.models[name]

    @contextmanager
    def stream(self) -> Iterator[None]:
        """A request to generate, while it is under way."""
        if self._streams >= self.config.max_streams:
            raise full(f"{self._streams} requests are under way already", self.config.retry_after_s)
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    async def check_form(self, form: Form, model: ServedModel) -> None:
        """Refuse what no text of the model can be held to."""
        if not model.facts.eos:
            raise invalid(f"'{form.param}': {model.facts.name} has no token that ends a text", form.param)
        await self.grammars.check(form)

    def check_prompts(self, count: int) -> None:
        """Refuse a request for too many."""
        if count > (most := self.config.max_prompts):
            raise invalid(
                f"Invalid 'prompt': {count} prompts; at most {most} are taken.",
                "prompt",
                "array_above_max_length",
            )

    def check_room(self, model: ServedModel, prompts: int) -> None:
        """Refuse what would wait where too many do, or for nothing."""
        load = model.engine.load()
        if load.failure:
            raise failed(load.failure)
        if load.waiting + prompts > self.config.max_waiting:
            raise full(
                f"{load.waiting} requests wait for {model.facts.name} already", self.config.retry_after_s
            )

    def loads(self) -> dict[str, EngineLoad]:
        """By model."""
        return {name: model.engine.load() for name, model in self.models.items()}
