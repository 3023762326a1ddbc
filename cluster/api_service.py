"""What all endpoints share: the models, the limits, and how many requests are under way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from cluster.api_config import ApiConfig
from cluster.api_errors import ApiError, failed, full, invalid
from cluster.engine_client import EngineClient, EngineLoad
from cluster.grammar_checks import GrammarChecks
from cluster.request_counts import Counts
from cluster.request_record import RequestRecord
from cluster.served_model import ServedModel
from cluster.structured import Form


class Catalogue(Protocol):
    """Models that come and go while the service runs."""

    def attach(self, service: Service) -> None:
        """Tell the service from now on which there are."""

    async def find(self, name: str | None) -> ServedModel | None:
        """One that is not open yet, once it is; None where there is none of this name."""

    def names(self) -> Mapping[str, int]:
        """All that there are, those that are not open too, and when each came, in seconds since 1970."""

    async def renew(self, name: str) -> None:
        """The model has another tokenizer meanwhile, or will have; waits a little."""

    def problems(self) -> Sequence[str]:
        """Models that cannot answer now, a line for each."""


class Service:
    """For one event loop."""

    def __init__(
        self, config: ApiConfig, *, log_prompts: bool = False, separate_caches: bool = False
    ) -> None:
        self.config, self._log_prompts, self._separate_caches = config, log_prompts, separate_caches
        self.models: dict[str, ServedModel] = {}
        """By the names that callers use; those that are ready."""
        self._catalogue: Catalogue | None = None
        self.grammars = GrammarChecks(config)
        self.counts = Counts()
        self.is_draining = False
        """No request to generate is taken any more."""
        self.under_way = 0
        """Requests to generate."""

    def serve(self, models: Sequence[ServedModel]) -> None:
        """From now on."""
        self.models = {model.facts.name: model for model in models}
        self.counts.serve([*self.models])

    def follow(self, models: Sequence[ServedModel] | Catalogue) -> None:
        """Serve these, or those that there are at any time."""
        if isinstance(models, Sequence):
            self.serve(models)
            return
        self._catalogue = models
        models.attach(self)

    async def found(self, name: str | None) -> ServedModel:
        """The same as `model`, for those too that have to be started first."""
        is_known = name in self.models or (name is None and len(self.models) == 1)
        if not is_known and self._catalogue and (model := await self._catalogue.find(name)):
            return model
        return self.model(name)

    @property
    def closed(self) -> dict[str, int]:
        """Models that answer once they are open, and when each came."""
        names = self._catalogue.names() if self._catalogue else {}
        return {name: came for name, came in names.items() if name not in self.models}

    async def renew(self, model: ServedModel) -> None:
        """Its tokens were refused: it is to be found again."""
        if self._catalogue:
            await self._catalogue.renew(model.facts.name)

    def problems(self) -> list[str]:
        """Why not every model takes requests; nothing where every one does."""
        found = [why for load in self.loads().values() if (why := load.failure or load.recovering)]
        found += self._catalogue.problems() if self._catalogue else ()
        return found or ([] if self.models or self._catalogue else ["no model is served yet"])

    def model(self, name: str | None) -> ServedModel:
        """The one of this name, or the only one where none is named."""
        if name is None and len(self.models) == 1:
            return next(iter(self.models.values()))
        if name is None or name not in self.models:
            there = " or ".join((*self.models, *self.closed))
            raise ApiError(
                status=404,
                message=f"The model {(name or '')[:200]!r} does not exist; use {there}",
                param="model",
                code="model_not_found",
            )
        return self.models[name]

    def logged(self, prompt: object) -> object:
        """What the log may say of it."""
        return prompt if self._log_prompts else None

    def namespace(self, record: RequestRecord) -> str:
        """Whose prompts it shares the cache with."""
        return record.key.record.id if self._separate_caches and record.key else ""

    @contextmanager
    def stream(self) -> Iterator[None]:
        """A request to generate, while it is under way."""
        self.check_draining()
        if self.under_way >= self.config.max_streams:
            raise full(f"{self.under_way} requests are under way already", self.config.retry_after_s)
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    def check_draining(self) -> None:
        """Others may take what this one does not."""
        if self.is_draining:
            raise failed(
                "the server is being drained", code="draining", retry_after_s=self.config.retry_after_s
            )

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

    def engines(self) -> dict[str, EngineClient]:
        """By model."""
        return {name: model.engine for name, model in self.models.items()}

    def loads(self) -> dict[str, EngineLoad]:
        """By model."""
        return {name: model.engine.load() for name, model in self.models.items()}
